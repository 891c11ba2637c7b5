package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"berth"
	"berth/engine"
)

// The labels of an attachment's endpoint, and of a network that was made for a
// configuration.
const (
	labelContainer = "cni.container"
	labelInterface = "cni.interface"
	labelNetwork   = "cni.network" // the configuration's name
	labelPending   = "cni.pending" // its ADD has not come to its end
)

// identity are the labels by which an attachment is known.
func (c *call) identity() map[string]string {
	return map[string]string{labelContainer: c.container, labelInterface: c.ifname, labelNetwork: c.conf.Name}
}

// endpoints finds the endpoint of this attachment, by the names its sandbox has
// or, if there is none, among all of the network.
func (c *call) endpoints(ctx context.Context, e *engine.Engine) ([]berth.Endpoint, error) {
	refs := []string{c.container}
	if c.netns != "" {
		refs = append(refs, engine.NetNS(c.netns))
	}
	eps, err := e.FindEndpoints(ctx, c.conf.network, c.identity(), refs...)
	if err == nil && len(eps) == 0 {
		eps, err = e.FindEndpoints(ctx, c.conf.network, c.identity())
	}
	if errors.Is(err, berth.ErrNotFound) { // there is no such network
		return nil, nil
	}
	return eps, err
}

// add is ADD. The endpoint says that it is pending until all is done, so that
// an ADD that was killed can be told from one that came to its end.
func (c *call) add(ctx context.Context, e *engine.Engine) (result types.Result, err error) {
	if err := c.takePrevious(); err != nil {
		return nil, err
	}
	there, err := e.Prospect(ctx, c.conf.network, c.identity(), engine.NetNS(c.netns), c.container)
	if err != nil {
		return nil, c.badNetNS(err)
	}
	if err := c.again(ctx, e, there.Endpoints); err != nil {
		return nil, err
	}
	if c.conf.delegated() {
		answer, why := c.delegateAdd(ctx)
		if why != nil {
			return nil, why
		}
		defer func() { // whatever fails from here on, the addresses go back
			if err != nil {
				err = errors.Join(err, c.delegate(context.WithoutCancel(ctx), "DEL"))
			}
		}()
		if err := c.conf.takeAnswer(answer); err != nil {
			return nil, err
		}
	}
	n, err := c.network(ctx, e, there)
	if err != nil {
		return nil, err
	}
	ep, err := c.connect(ctx, e, n)
	if err != nil {
		return nil, err
	}
	if result, err = c.complete(ctx, e, n, ep); err != nil {
		return nil, errors.Join(err, c.disconnect(context.WithoutCancel(ctx), e, ep))
	}
	return result, nil
}

// badNetNS says what is wrong with CNI_NETNS.
func (c *call) badNetNS(err error) error {
	if errors.Is(err, berth.ErrInvalid) { // the host's own
		return fail(codeNetNS, "CNI_NETNS %s: %v", short(c.netns), err)
	}
	if errors.Is(err, berth.ErrNotFound) {
		return fail(codeEnvironment, "CNI_NETNS %s is no network namespace", short(c.netns))
	}
	return err
}

// again refuses an attachment that is there. One that was not finished, or
// whose namespace is gone, makes room.
func (c *call) again(ctx context.Context, e *engine.Engine, eps []berth.Endpoint) error {
	for _, ep := range eps {
		if ep.Labels[labelPending] == "" && !ep.Leaving {
			sb, err := e.InspectSandbox(ctx, ep.Sandbox)
			if err == nil && sb.Alive {
				return fail(codeExists, "container %s is attached to network %s by %s already", short(c.container), c.conf.Name, c.ifname)
			}
			if err != nil && !errors.Is(err, berth.ErrNotFound) {
				return err
			}
		}
		if err := errors.Join(c.disconnect(ctx, e, ep), c.delegate(ctx, "DEL")); err != nil {
			return err
		}
	}
	return nil
}

// network returns the network of the configuration, and makes it if it is not
// there. One that is there must be what the configuration says.
func (c *call) network(ctx context.Context, e *engine.Engine, there engine.Prospect) (berth.Network, error) {
	if there.Network.ID == "" {
		n, err := e.CreateNetwork(ctx, c.networkSpec())
		if !errors.Is(err, berth.ErrExists) { // else by another ADD meanwhile, or it is about a link
			return n, err
		}
		again, why := e.Prospect(ctx, c.conf.network, c.identity(), engine.NetNS(c.netns))
		if why != nil || again.Network.ID == "" {
			return n, err
		}
		there = again
	}
	err := c.conf.agrees(there.Network)
	if err == nil && there.Vacant {
		err = c.stands(ctx, e, there.Network)
	}
	return there.Network, err
}

// stands mends a network that nobody is connected to yet: whoever made it may
// have been killed half way, and connecting to it touches none of its parts.
func (c *call) stands(ctx context.Context, e *engine.Engine, n berth.Network) error {
	r, err := e.CheckNetwork(ctx, n.ID)
	if err == nil && !r.Clean() {
		_, err = e.Reconcile(ctx)
	}
	return err
}

func (c *call) networkSpec() engine.NetworkSpec {
	spec := c.conf.spec
	labels := map[string]string{labelNetwork: c.conf.Name}
	for k, v := range spec.Labels {
		labels[k] = v
	}
	spec.Labels = labels
	spec.NoIPv4 = spec.NoIPv4 && !slices.ContainsFunc(spec.Subnets, func(s berth.Subnet) bool { return s.Prefix.Addr().Is4() })
	return spec
}

// agrees refuses a network that is not what the configuration says.
func (c *config) agrees(n berth.Network) error {
	differ := func(key string, have, want any) error {
		return fail(codeConfig, "network %s is there, and its %s is %v, not %v as the configuration says", n.Name, key, have, want)
	}
	if c.internal != nil && *c.internal != n.Internal {
		return differ("internal", n.Internal, *c.internal)
	}
	for name, v := range c.spec.Options {
		if n.Options[name] != v && (name != "mtu" || fmt.Sprint(n.MTU) != v) {
			return differ("option "+name, fmt.Sprintf("%q", n.Options[name]), fmt.Sprintf("%q", v))
		}
	}
	for _, s := range c.spec.Subnets {
		i := slices.IndexFunc(n.Subnets, func(o berth.Subnet) bool { return o.Prefix == s.Prefix })
		if i < 0 {
			return fail(codeConfig, "network %s is there, and has no subnet %s as the configuration says", n.Name, s.Prefix)
		}
		if s.Gateway.IsValid() && s.Gateway != n.Subnets[i].Gateway {
			return differ("gateway", n.Subnets[i].Gateway, s.Gateway)
		}
	}
	return nil
}

func (c *call) connect(ctx context.Context, e *engine.Engine, n berth.Network) (berth.Endpoint, error) {
	o := engine.ConnectOptions{
		MAC: c.conf.mac, Interface: c.ifname, Aliases: c.conf.aliases, GwPriority: c.conf.gwPriority,
		Within: c.conf.ipam.ranges, Sandbox: c.container, Found: c.previous != nil, Labels: map[string]string{},
	}
	var err error
	if o.Rates, err = c.conf.rates.rates(); err != nil {
		return berth.Endpoint{}, err
	}
	for _, a := range c.conf.ips {
		into := &o.IP6
		if a.Is4() {
			into = &o.IP4
		}
		if into.IsValid() {
			return berth.Endpoint{}, fail(codeConfig, "addresses %s and %s: an attachment has one of each family", *into, a)
		}
		*into = a
	}
	for k, v := range c.conf.labels {
		o.Labels[k] = v
	}
	for k, v := range c.identity() {
		o.Labels[k] = v
	}
	o.Labels[labelPending] = "1"
	return e.Connect(ctx, n.ID, engine.NetNS(c.netns), o)
}

// complete does what comes after the connection and ends the ADD.
func (c *call) complete(ctx context.Context, e *engine.Engine, n berth.Network, ep berth.Endpoint) (types.Result, error) {
	if len(c.conf.ports) > 0 {
		if _, err := e.Publish(ctx, ep.Sandbox, c.conf.ports, engine.PublishOptions{Network: n.ID}); err != nil {
			return nil, err
		}
	}
	var result types.Result = c.previous
	if c.previous == nil {
		side, err := e.HostSide(ctx, ep)
		if err != nil {
			return nil, err
		}
		result = c.result(n, ep, side)
	}
	return result, e.LabelEndpoint(ctx, ep, map[string]string{labelPending: ""})
}

// disconnect takes an endpoint away. That it is gone is no error.
func (c *call) disconnect(ctx context.Context, e *engine.Engine, ep berth.Endpoint) error {
	err := e.Disconnect(ctx, ep.Network, []string{ep.Sandbox}, engine.DisconnectOptions{Interface: ep.Interface})
	if errors.Is(err, berth.ErrNotFound) {
		return nil
	}
	return err
}

// result tells what an attachment is.
func (c *call) result(n berth.Network, ep berth.Endpoint, side engine.HostSide) *current.Result {
	r := &current.Result{CNIVersion: current.ImplementedSpecVersion, DNS: c.conf.dns}
	if r.DNS.IsEmpty() {
		r.DNS = c.conf.ipam.dns
	}
	for _, l := range []engine.HostLink{side.Bridge, side.End} {
		if l.Name != "" {
			r.Interfaces = append(r.Interfaces, &current.Interface{Name: l.Name, Mac: l.MAC.String(), Mtu: l.MTU})
		}
	}
	r.Interfaces = append(r.Interfaces, &current.Interface{Name: ep.Interface, Mac: ep.MAC.String(), Mtu: n.MTU, Sandbox: c.netns})
	for _, a := range ep.Addrs {
		ip := &current.IPConfig{Interface: current.Int(len(r.Interfaces) - 1), Address: ipNet(a)}
		if gw, ok := n.Gateway(a.Addr()); ok && !n.Internal {
			ip.Gateway = gw.AsSlice()
		}
		r.IPs = append(r.IPs, ip)
	}
	for _, gw := range side.Gateways {
		if n.Internal {
			continue
		}
		anywhere := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		if gw.Is4() {
			anywhere = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
		r.Routes = append(r.Routes, &types.Route{Dst: ipNet(anywhere), GW: gw.AsSlice()})
	}
	return r
}

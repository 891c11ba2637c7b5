package cni

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"berth"
	"berth/engine"
	"berth/internal/attach"
)

// errNoPart says that no way of the host leads to an attachment.
var errNoPart = fail(codeConfig, "no address in a subnet of the attachment, so nothing of the host leads there")

// labelParts names the plugins of a chain that want something of an endpoint:
// with the last of them it goes.
const labelParts = "cni.parts"

// labelFound marks a network that was made for what a chain's first plugin
// connects: it goes with its last endpoint.
const labelFound = "cni.found"

// A ward is the engine's side of an attachment that a chain's first plugin made.
// What the engine has of it is an endpoint that is found.
type ward struct {
	*call
	e    *engine.Engine
	h    *attach.Host // nil: its namespace is gone
	part string       // the plugin that is called
}

// openWard opens the engine for a call of a plugin.
func openWard(ctx context.Context, part, name string, args *skel.CmdArgs, h *attach.Host) (*ward, error) {
	c := &call{container: args.ContainerID, netns: args.Netns, ifname: args.IfName, stderr: os.Stderr}
	c.conf.Name = name
	e, err := engine.Open(ctx, c.options(os.Getenv))
	if err == nil {
		_, err = e.FindEverywhere(ctx, map[string]string{labelNetwork: name})
	}
	if errors.Is(err, berth.ErrConflict) && os.Getenv("BERTH_RUN") == "" && h != nil {
		// The usual stores are another namespace's, and this one is a host too:
		// the reference plugins keep nothing that would tell hosts apart.
		run := filepath.Join("/run/berth/hosts", strconv.FormatUint(h.ID(), 16))
		err = nil
		if e != nil {
			err = e.Close()
		}
		if err == nil {
			e, err = engine.Open(ctx, engine.Options{Root: filepath.Join(run, "root"), Run: run, Notice: c.options(os.Getenv).Notice})
		}
	}
	if err != nil {
		return nil, err
	}
	return &ward{c, e, h, part}, nil
}

// parts are the plugins that want something of an endpoint.
func parts(ep berth.Endpoint) []string { return strings.Fields(ep.Labels[labelParts]) }

// mine are the endpoints of the attachment.
func (w *ward) mine(ctx context.Context) ([]berth.Endpoint, error) {
	return w.e.FindEverywhere(ctx, w.identity())
}

// adopt finds the endpoint, or records what a result says of it, and notes that
// the plugin wants something of it.
//
// The host may have no part in what the bridge carries: then there is nothing
// of the firewall to want, and only limits and neighbours are left.
func (w *ward) adopt(ctx context.Context, r *current.Result, masquerade bool) (berth.Network, berth.Endpoint, error) {
	have, err := w.mine(ctx)
	if err != nil {
		return berth.Network{}, berth.Endpoint{}, err
	}
	for _, ep := range have {
		sb, err := w.e.InspectSandbox(ctx, ep.Sandbox)
		if ep.Leaving || err != nil || !sb.Alive {
			if err := w.disconnect(ctx, w.e, ep); err != nil {
				return berth.Network{}, ep, err
			}
			continue
		}
		n, err := w.e.Network(ctx, ep.Network)
		if err == nil && !slices.Contains(parts(ep), w.part) {
			err = w.e.LabelEndpoint(ctx, ep, map[string]string{labelParts: ep.Labels[labelParts] + " " + w.part})
		}
		return n, ep, err
	}
	for try := 0; ; try++ { // another call may take the network away meanwhile, or make it
		n, err := w.network(ctx, r, masquerade)
		var ep berth.Endpoint
		if err == nil {
			o := engine.ConnectOptions{Found: true, Interface: w.ifname, Sandbox: w.container, Labels: w.identity()}
			o.Labels[labelParts] = w.part
			ep, err = w.e.Connect(ctx, n.ID, engine.NetNS(w.netns), o)
		}
		if err == nil || try == 4 || !errors.Is(err, berth.ErrNotFound) && !errors.Is(err, berth.ErrConflict) && !errors.Is(err, berth.ErrExists) {
			return n, ep, err
		}
	}
}

// network finds the network of the bridge that the attachment is on, or makes
// one; a pair by itself has one of its own.
func (w *ward) network(ctx context.Context, r *current.Result, masquerade bool) (berth.Network, error) {
	bridge, err := w.bridge(r)
	if err != nil {
		return berth.Network{}, err
	}
	subs, err := w.subnets(r, bridge)
	if err != nil {
		return berth.Network{}, err
	}
	if len(subs) == 0 && (masquerade || bridge == "") {
		return berth.Network{}, errNoPart
	}
	all, err := w.e.Networks(ctx)
	if err != nil {
		return berth.Network{}, err
	}
	if bridge != "" {
		for _, n := range all {
			if n.Bridge == bridge {
				if n.NoAddress {
					return n.Network, nil
				}
				a := engine.Amendment{Subnets: subs}
				if masquerade {
					a.Masquerade = &masquerade
				}
				return w.e.AmendNetwork(ctx, n.ID, a)
			}
		}
	}
	sum := sha256.Sum256([]byte(w.container + "/" + w.ifname))
	spec := engine.NetworkSpec{
		Name: w.conf.Name, Subnets: subs, Labels: map[string]string{labelNetwork: w.conf.Name, labelFound: "1"},
		Options: map[string]string{"open": "true", "masquerade": strconv.FormatBool(masquerade)},
	}
	if bridge != "" {
		if len(subs) == 0 {
			spec.Options = map[string]string{"address": "false"}
		}
		spec.Options["bridge"] = bridge
	} else {
		spec.Driver = berth.Link
	}
	if bridge == "" || berth.ValidName("network", spec.Name) != nil || slices.ContainsFunc(all, func(n engine.NetworkDetail) bool { return n.Name == spec.Name }) {
		if bridge != "" {
			sum = sha256.Sum256([]byte(bridge))
		}
		spec.Name = "cni-" + hex.EncodeToString(sum[:6])
	}
	return w.e.CreateNetwork(ctx, spec)
}

// bridge is the bridge of which the attachment's end on the host is a port; none
// for a pair by itself.
func (w *ward) bridge(r *current.Result) (string, error) {
	end, err := w.h.HostEnd(w.ifname)
	if err != nil || end == "" {
		return "", cmp.Or(err, fmt.Errorf("container interface %s has no veth peer on the host", w.ifname))
	}
	if len(r.Interfaces) == 0 { // before 0.3.0 a result has none
		return w.h.BridgeOf(end)
	}
	if !slices.ContainsFunc(r.Interfaces, func(l *current.Interface) bool { return l.Sandbox == "" && l.Name == end }) {
		return "", fmt.Errorf("no veth peer of container interface found in host ns: prevResult has no interface %s", end)
	}
	port, err := w.h.OnHost(end)
	if err != nil {
		return "", err
	}
	for _, l := range r.Interfaces {
		if l.Sandbox != "" || l.Name == end {
			continue
		}
		if br, err := w.h.OnHost(l.Name); err == nil && br.Kind == "bridge" && port.PortOf(br) {
			return br.Name, nil
		}
	}
	return "", nil
}

// subnets are those of the attachment's addresses in which the host has a part,
// with its address as the gateway.
func (w *ward) subnets(r *current.Result, bridge string) (subs []berth.Subnet, err error) {
	var own []netip.Prefix
	if bridge != "" {
		br, err := w.h.OnHost(bridge)
		if err != nil {
			return nil, err
		}
		own = br.Addrs
	}
	for i := range r.IPs {
		if !w.ofInside(r, i) {
			continue
		}
		p, err := prefixOf(r.IPs[i].Address)
		if err != nil {
			return nil, err
		}
		s := berth.Subnet{Prefix: p.Masked()}
		s.Gateway = gatewayOf(r.IPs[i], p)
		if bridge != "" {
			at := slices.IndexFunc(own, func(o netip.Prefix) bool { return o.Masked() == s.Prefix })
			if at < 0 {
				continue // the host has no part in that subnet
			}
			s.Gateway = own[at].Addr()
		}
		if !slices.ContainsFunc(subs, func(o berth.Subnet) bool { return o.Prefix == s.Prefix }) {
			subs = append(subs, s)
		}
	}
	return subs, nil
}

// gatewayOf is what a result says, or where it says what cannot be, another
// address of the subnet than the attachment's.
func gatewayOf(ip *current.IPConfig, p netip.Prefix) netip.Addr {
	gw, _ := netip.AddrFromSlice(ip.Gateway)
	if gw = gw.Unmap(); gw.IsValid() && p.Contains(gw) && gw != p.Addr() {
		return gw
	}
	if gw = p.Masked().Addr().Next(); gw == p.Addr() {
		gw = gw.Next()
	}
	return gw
}

// ofInside reports whether an address of a result is the attachment's.
func (w *ward) ofInside(r *current.Result, i int) bool {
	at := r.IPs[i].Interface
	if at == nil || *at < 0 || *at >= len(r.Interfaces) {
		return true
	}
	return r.Interfaces[*at].Name == w.ifname && r.Interfaces[*at].Sandbox != ""
}

// release takes back what the plugin wanted of the attachment's endpoints, and
// with the last plugin, or if all is said, the endpoints.
func (w *ward) release(ctx context.Context, all bool, undo func(berth.Endpoint) error) error {
	have, err := w.mine(ctx)
	errs := []error{err}
	for _, ep := range have {
		rest := slices.DeleteFunc(parts(ep), func(p string) bool { return p == w.part })
		switch {
		case len(rest) == 0 || all:
			if err = w.disconnect(ctx, w.e, ep); err == nil {
				err = w.leave(ctx, ep.Network)
			}
		default:
			if undo != nil {
				err = undo(ep)
			}
			if err == nil {
				err = w.e.LabelEndpoint(ctx, ep, map[string]string{labelParts: strings.Join(rest, " ")})
			}
		}
		if !errors.Is(err, berth.ErrNotFound) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// leave removes a network that was made for what is found, if it was the last.
func (w *ward) leave(ctx context.Context, id string) error {
	n, err := w.e.Network(ctx, id)
	if err == nil && n.Labels[labelFound] != "" {
		err = w.e.RemoveNetwork(ctx, n.ID, engine.RemoveOptions{})
	}
	if errors.Is(err, berth.ErrInUse) || errors.Is(err, berth.ErrNotFound) {
		return nil
	}
	return err
}

// collect is GC: what is of the configuration and in no list goes.
func (w *ward) collect(ctx context.Context, valid []types.GCAttachment) error {
	have, err := w.e.FindEverywhere(ctx, map[string]string{labelNetwork: w.conf.Name})
	errs := []error{err}
	for _, ep := range have {
		a := types.GCAttachment{ContainerID: ep.Labels[labelContainer], IfName: ep.Labels[labelInterface]}
		if ep.Labels[labelParts] == "" || slices.Contains(valid, a) {
			continue
		}
		if err := w.disconnect(ctx, w.e, ep); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, w.leave(ctx, ep.Network))
	}
	return errors.Join(errs...)
}

// check compares what is recorded of the attachment with the kernel.
func (w *ward) check(ctx context.Context) (berth.Endpoint, error) {
	have, err := w.mine(ctx)
	if err != nil {
		return berth.Endpoint{}, err
	}
	for _, ep := range have {
		if !slices.Contains(parts(ep), w.part) {
			continue
		}
		r, err := w.e.CheckSandbox(ctx, ep.Sandbox)
		if lines := differences(r); err == nil && len(lines) > 0 {
			err = &Error{Code: codeDiffers, Msg: "attachment " + short(w.container) + " " + w.ifname + " is not as it should be", Details: strings.Join(lines, "; ")}
		}
		return ep, err
	}
	return berth.Endpoint{}, fail(codeUnknown, "container %s has nothing of %s on network %s by %s", short(w.container), w.part, w.conf.Name, w.ifname)
}

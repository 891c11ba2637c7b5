package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"berth"
	"berth/engine"
)

// A link is a plugin that is called behind the one that connects: what it wants
// of the engine, and what it takes back.
type link struct {
	name string
	need string // what is said where no plugin was called before
	// idle reports whether there is nothing to do.
	idle func(*linkConf) bool
	load func(*linkConf) error
	do   func(context.Context, *ward, *linkConf, berth.Network, berth.Endpoint) error
	undo func(context.Context, *ward, *linkConf, berth.Endpoint) error
	// is reports why an endpoint is not what the configuration says.
	is func(context.Context, *ward, *linkConf, berth.Endpoint) error
}

// A linkConf is the configuration of any of them.
type linkConf struct {
	types.NetConf
	result *current.Result // of the plugin before

	Backend       string `json:"backend"`
	IngressPolicy string `json:"ingressPolicy"`
	MarkMasqBit   *int   `json:"markMasqBit"`
	RuntimeConfig struct {
		PortMappings json.RawMessage  `json:"portMappings"`
		Bandwidth    *bandwidthConfig `json:"bandwidth"`
	} `json:"runtimeConfig"`

	limits bandwidthConfig // of the configuration itself
	ports  []berth.PortSpec
	rates  berth.Rates
}

func (l link) conf(args *skel.CmdArgs) (*linkConf, error) {
	c, err := l.decode(args)
	if err == nil {
		c.result, err = previousOf(&c.NetConf)
	}
	return c, err
}

// decode reads all but the result of the plugin before.
func (l link) decode(args *skel.CmdArgs) (*linkConf, error) {
	c := &linkConf{}
	err := json.Unmarshal(args.StdinData, c)
	if err == nil {
		err = json.Unmarshal(args.StdinData, &c.limits)
	}
	if err != nil {
		return nil, fmt.Errorf("failed to parse network configuration: %w", err)
	}
	return c, l.load(c)
}

func (l link) add(args *skel.CmdArgs) error {
	ctx := context.Background()
	c, err := l.conf(args)
	if err != nil {
		return err
	}
	if c.result == nil {
		return errors.New(l.need)
	}
	if !l.idle(c) {
		if err := l.apply(ctx, args, c); err != nil {
			return err
		}
	}
	return printResult(c.result, c.CNIVersion)
}

// apply has the engine do what is wanted. If it cannot, nothing of it is left.
func (l link) apply(ctx context.Context, args *skel.CmdArgs, c *linkConf) error {
	h, err := openNS(args.Netns)
	if err != nil {
		return err
	}
	defer h.Close()
	w, err := openWard(ctx, l.name, c.Name, args, h)
	if err != nil {
		return err
	}
	defer w.e.Close()
	n, ep, err := w.adopt(ctx, c.result, false)
	if err != nil {
		return err
	}
	if err := l.do(ctx, w, c, n, ep); err != nil {
		return errors.Join(err, w.release(ctx, false, nil))
	}
	return nil
}

func (l link) del(args *skel.CmdArgs) error {
	ctx := context.Background()
	c, err := l.decode(args)
	if err != nil {
		return err
	}
	return inWard(ctx, l.name, c.Name, args, func(w *ward) error {
		return w.release(ctx, false, func(ep berth.Endpoint) error { return l.undo(ctx, w, c, ep) })
	})
}

// inWard does something with the engine's side of an attachment that may be
// gone.
func inWard(ctx context.Context, part, name string, args *skel.CmdArgs, do func(*ward) error) error {
	h, err := openGoing(args.Netns)
	if err == nil && h == nil {
		h, err = openNS("") // the host alone
	}
	if err != nil {
		return err
	}
	defer h.Close()
	w, err := openWard(ctx, part, name, args, h)
	if err != nil {
		return err
	}
	return errors.Join(do(w), w.e.Close())
}

func (l link) check(args *skel.CmdArgs) error {
	ctx := context.Background()
	c, err := l.conf(args)
	if err != nil {
		return err
	}
	if c.result == nil {
		return said("Required prevResult missing")
	}
	if l.idle(c) {
		return nil
	}
	return inWard(ctx, l.name, c.Name, args, func(w *ward) error {
		ep, err := w.check(ctx)
		if err == nil && l.is != nil {
			err = l.is(ctx, w, c, ep)
		}
		return err
	})
}

func (l link) gc(args *skel.CmdArgs) error {
	var c types.NetConf
	if err := json.Unmarshal(args.StdinData, &c); err != nil {
		return fmt.Errorf("failed to parse network configuration: %w", err)
	}
	ctx := context.Background()
	return inWard(ctx, l.name, c.Name, args, func(w *ward) error { return w.collect(ctx, c.ValidAttachments) })
}

func (l link) status(args *skel.CmdArgs) error {
	err := inWard(context.Background(), l.name, "", args, func(*ward) error { return nil })
	if err != nil {
		return unavailable(err)
	}
	return nil
}

func (l link) funcs() skel.CNIFuncs {
	return skel.CNIFuncs{Add: l.add, Del: l.del, Check: l.check, GC: l.gc, Status: l.status}
}

var portmapKeys = map[string]map[string]key{
	"": {
		"snat":                 {verdict: differs, why: "a port is reached from 127.0.0.1 and from its own sandbox with false too; nobody else's address is changed with either"},
		"backend":              {verdict: differs, why: "nftables, whichever is named"},
		"markMasqBit":          {verdict: differs, why: "no packet is marked: the bit stays free"},
		"masqAll":              no("a client's address is kept; only what needs it is masqueraded"),
		"conditionsV4":         no("a published port is an element of a map and takes no conditions"),
		"conditionsV6":         no("a published port is an element of a map and takes no conditions"),
		"externalSetMarkChain": no("no packet is marked"),
	},
	"runtimeConfig": {"portMappings": {verdict: differs, why: "a port that belongs to somebody else is an error"}},
}

var portmap = link{
	name: "portmap", need: "must be called as chained plugin",
	idle: func(c *linkConf) bool { return len(c.ports) == 0 },
	load: func(c *linkConf) error {
		if c.MarkMasqBit != nil && (*c.MarkMasqBit < 0 || *c.MarkMasqBit > 31) {
			return said("MasqMarkBit must be between 0 and 31")
		}
		if !slices.Contains([]string{"", "iptables", "nftables"}, c.Backend) {
			return fmt.Errorf("unrecognized backend %q", c.Backend)
		}
		if len(c.RuntimeConfig.PortMappings) == 0 {
			return nil
		}
		if err := checkPortNumbers(c.RuntimeConfig.PortMappings); err != nil {
			return err
		}
		var into config
		err := takePorts(&into, c.RuntimeConfig.PortMappings)
		c.ports = into.ports
		return err
	},
	do: func(ctx context.Context, w *ward, c *linkConf, n berth.Network, ep berth.Endpoint) error {
		_, err := w.e.Publish(ctx, ep.Sandbox, c.ports, engine.PublishOptions{Network: n.ID})
		return err
	},
	undo: func(ctx context.Context, w *ward, c *linkConf, ep berth.Endpoint) error {
		for _, p := range c.ports { // one by one: some may be gone
			if _, err := w.e.Unpublish(ctx, ep.Sandbox, []berth.PortSpec{p}); err != nil && !errors.Is(err, berth.ErrNotFound) {
				return err
			}
		}
		return nil
	},
	is: func(ctx context.Context, w *ward, c *linkConf, ep berth.Endpoint) error {
		have, err := w.e.Ports(ctx, ep.Sandbox)
		for _, p := range c.ports {
			if !slices.ContainsFunc(have, func(o engine.PortDetail) bool {
				return o.HostPort == p.HostLow && o.Protocol == p.Protocol && o.To.Port() == p.Port
			}) {
				err = errors.Join(err, fmt.Errorf("port %d/%s is not published", p.HostLow, p.Protocol))
			}
		}
		return err
	},
}

func checkPortNumbers(raw json.RawMessage) error {
	var all []struct{ HostPort, ContainerPort int }
	if err := json.Unmarshal(raw, &all); err != nil {
		return fmt.Errorf("failed to parse network configuration: %w", err)
	}
	for _, p := range all {
		if p.ContainerPort <= 0 {
			return said("Invalid container port number: %d", p.ContainerPort)
		}
		if p.HostPort <= 0 {
			return said("Invalid host port number: %d", p.HostPort)
		}
	}
	return nil
}

var firewallKeys = map[string]map[string]key{"": {
	"backend":                {verdict: differs, why: "nftables, where `iptables` is named or nothing; `firewalld` is refused: its rules are not Berth's to edit"},
	"ingressPolicy":          {verdict: differs, why: "`open`; `same-bridge` closes the network to all but its published ports and answers; `isolated` also sets its neighbours apart"},
	"iptablesAdminChainName": no("there is nftables only; rules of your own go into a table of your own"),
	"firewalldZone":          no("Berth edits no other tool's rules; berth check names what they drop"),
}}

var firewall = link{
	name: "firewall", need: "missing prevResult from earlier plugin",
	idle: func(c *linkConf) bool { return len(c.result.IPs) == 0 },
	load: func(c *linkConf) error {
		if !slices.Contains([]string{"", "open", "same-bridge", "isolated"}, c.IngressPolicy) {
			return fmt.Errorf("unknown ingress policy: %q", c.IngressPolicy)
		}
		if !slices.Contains([]string{"", "iptables", "nftables"}, c.Backend) {
			return &Error{Code: codeUnsupported, Msg: "unsupported key backend: " + short(c.Backend), Details: "there is nftables only; Berth edits no other tool's rules"}
		}
		return nil
	},
	do: func(ctx context.Context, w *ward, c *linkConf, n berth.Network, ep berth.Endpoint) error {
		open, apart := c.IngressPolicy == "" || c.IngressPolicy == "open", c.IngressPolicy == "isolated"
		if n.Labels[labelFound] != "" && !n.NoAddress {
			if _, err := w.e.AmendNetwork(ctx, n.ID, engine.Amendment{Open: &open, Isolated: &apart}); err != nil {
				return err
			}
		}
		if !apart || n.Bridge == "" {
			return nil
		}
		return w.h.Isolate(ctx, ep.Link, true)
	},
	undo: func(context.Context, *ward, *linkConf, berth.Endpoint) error { return nil },
}

const bwShaped = "all that enters or leaves an attachment is shaped"

var bandwidthKeys = map[string]map[string]key{
	"": {
		"ingressRate": {verdict: same}, "ingressBurst": {verdict: same}, "egressRate": {verdict: same}, "egressBurst": {verdict: same},
		"unshapedSubnets": no(bwShaped), "shapedSubnets": no(bwShaped),
	},
	"runtimeConfig": {"bandwidth": {verdict: same, why: "where the configuration has none itself"}},
}

var bandwidth = link{
	name: "bandwidth", need: "must be called as chained plugin",
	idle: func(c *linkConf) bool { return c.rates == (berth.Rates{}) },
	load: func(c *linkConf) error {
		b := c.limits
		if b == (bandwidthConfig{}) && c.RuntimeConfig.Bandwidth != nil {
			b = *c.RuntimeConfig.Bandwidth
		}
		for _, d := range [][2]uint64{{b.IngressRate, b.IngressBurst}, {b.EgressRate, b.EgressBurst}} {
			switch {
			case d[0] != 0 && d[1] == 0:
				return errors.New("if rate is set, burst must also be set")
			case d[0] == 0 && d[1] != 0:
				return errors.New("if burst is set, rate must also be set")
			case d[1]/8 >= math.MaxUint32:
				return errors.New("burst cannot be more than 4GB")
			}
		}
		var err error
		c.rates, err = b.rates()
		return err
	},
	do: func(ctx context.Context, w *ward, c *linkConf, _ berth.Network, ep berth.Endpoint) error {
		if len(c.result.Interfaces) == 0 {
			return errors.New("no interfaces provided")
		}
		ep, err := w.e.LimitEndpoint(ctx, ep, c.rates)
		if err != nil {
			return err
		}
		if c.rates.Out.Bits == 0 {
			return nil
		}
		side, err := w.e.HostSide(ctx, ep)
		if err == nil && side.Turnstile.Name != "" {
			c.result.Interfaces = append(c.result.Interfaces, &current.Interface{Name: side.Turnstile.Name, Mac: side.Turnstile.MAC.String()})
		}
		return err
	},
	undo: func(ctx context.Context, w *ward, _ *linkConf, ep berth.Endpoint) error {
		_, err := w.e.LimitEndpoint(ctx, ep, berth.Rates{})
		return err
	},
	is: func(_ context.Context, _ *ward, c *linkConf, ep berth.Endpoint) error {
		if ep.Rates != c.rates {
			return said("Rate doesn't match")
		}
		return nil
	},
}

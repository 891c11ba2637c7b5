package attach

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"berth"
	"berth/internal/plan"
)

// A Pair is a connection of the namespace with the host.
type Pair struct {
	Name string // inside
	MTU  int
	MAC  berth.MAC // of the end inside; zero: the kernel's choice
	// Bridge is what the host's end is a port of; empty for none.
	Bridge            string
	Hairpin, Isolated bool
	Down              bool // the end inside is not brought up

	Addrs    []netip.Prefix // inside
	NoSubnet bool           // the subnets are not reached by the link itself
	Routes   []Route        // inside
	Settings []Setting      // inside, before there are addresses

	HostAddrs  []netip.Prefix
	HostRoutes []netip.Prefix // by the host's end
}

// A Route leads to a prefix by the end inside.
type Route struct {
	Dst           netip.Prefix
	Gateway, Src  netip.Addr // not valid: none
	Metric, Table int        // 0 is the kernel's default, and the main one
}

// A Setting is a sysctl, named by its path below /proc/sys.
type Setting struct{ Path, Value string }

// Attach makes a pair and returns the name of its end on the host. If it fails
// there is no pair.
func (h *Host) Attach(ctx context.Context, p Pair) (end string, err error) {
	if _, err := h.Inside(p.Name); !errors.Is(err, berth.ErrNotFound) {
		if err == nil {
			err = fmt.Errorf("container veth name (%q) %w", p.Name, berth.ErrExists)
		}
		return "", err
	}
	end = randomName()
	in, out := plan.LinkKey{Place: inside, Name: p.Name}, plan.LinkKey{Place: plan.Host, Name: end}
	steps := []plan.Step{plan.PutLink{
		Key:    out,
		Link:   plan.Link{Kind: plan.VethLink, MTU: p.MTU, Up: true, Peer: in, Master: p.Bridge, Hairpin: p.Hairpin, Isolated: p.Isolated},
		Inside: plan.Link{Kind: plan.VethLink, MTU: p.MTU, MAC: p.MAC, Peer: out},
	}, plan.SetSysctl{Key: plan.SysctlKey{Place: plan.Host, Path: "net/ipv6/conf/" + end + "/accept_ra"}, Value: "0"}}
	for _, s := range p.Settings {
		steps = append(steps, plan.SetSysctl{Key: plan.SysctlKey{Place: inside, Path: s.Path}, Value: s.Value})
	}
	for _, a := range p.Addrs {
		steps = append(steps, plan.PutAddr{Key: plan.AddrKey{Link: in, Prefix: a}, NoSubnet: p.NoSubnet})
	}
	if !p.Down {
		steps = append(steps, plan.UpLink{Key: in})
	}
	for _, a := range p.HostAddrs {
		steps = append(steps, plan.PutAddr{Key: plan.AddrKey{Link: out, Prefix: a}})
	}
	for _, dst := range p.HostRoutes {
		steps = append(steps, plan.PutRoute{Key: plan.RouteKey{Place: plan.Host, Table: mainTable, Dst: dst, Dev: end}, Others: true})
	}
	if err = h.k.Apply(ctx, steps); err == nil {
		err = h.route(ctx, p)
	}
	if err != nil {
		return "", errors.Join(err, h.undo(context.WithoutCancel(ctx), end))
	}
	return end, nil
}

// undo removes a pair that could not be finished; of another's of that name
// inside it knows nothing.
func (h *Host) undo(ctx context.Context, end string) error {
	return h.k.Apply(ctx, []plan.Step{plan.DropLinks{Place: plan.Host, Names: []string{end}, Others: true}})
}

// route puts the routes inside. Of several plugins that give the same the first
// counts.
func (h *Host) route(ctx context.Context, p Pair) error {
	for _, r := range p.Routes {
		table := r.Table
		if table == 0 {
			table = mainTable
		}
		err := h.k.Apply(ctx, []plan.Step{plan.PutRoute{
			Key:   plan.RouteKey{Place: inside, Table: table, Dst: r.Dst.Masked(), Dev: p.Name, Metric: r.Metric},
			Route: plan.Route{Gateway: r.Gateway, Src: r.Src}, Others: true,
		}})
		if err != nil && !errors.Is(err, berth.ErrExists) {
			return err
		}
	}
	return nil
}

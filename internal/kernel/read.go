package kernel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth/internal/plan"
)

// Read returns what is Berth's in the host and in the given sandboxes, in the
// shape that plan gives it, so that the difference to a plan that was just
// applied is empty. Nobody can list sysctls: those named are read. A sandbox
// whose namespace is gone is empty. The ends of a veth are matched by their
// alias among the places that are read.
func (k *Kernel) Read(ctx context.Context, places []plan.Place, sysctls []plan.SysctlKey) (plan.State, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.session()
	state := plan.State{
		Links: map[plan.LinkKey]plan.Link{}, Addrs: map[plan.AddrKey]plan.Addr{}, Routes: map[plan.RouteKey]plan.Route{},
		Rules: map[plan.RuleKey]struct{}{}, Sysctls: map[plan.SysctlKey]string{}, Shapes: map[plan.LinkKey]plan.Shape{},
	}
	wanted := map[plan.Place][]string{}
	for _, key := range sysctls {
		wanted[key.Place] = append(wanted[key.Place], key.Path)
	}
	pairs := map[string][]plan.LinkKey{}
	for _, name := range places {
		if err := ctx.Err(); err != nil {
			return state, err
		}
		if name == plan.Host {
			if err := k.readFirewall(&state); err != nil {
				return state, err
			}
		}
		p, err := s.place(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = p.read(&state, pairs, wanted[name])
		}
		if err != nil {
			return state, fmt.Errorf("read the kernel%s: %w", in(name), err)
		}
		if name != plan.Host { // a thousand open namespaces are too many
			delete(k.places, name)
			p.close()
			p.ns.Close()
		}
	}
	match(state, pairs)
	return state, nil
}

func (k *Kernel) readFirewall(state *plan.State) error {
	c, err := k.firewall()
	if err != nil {
		return err
	}
	t, err := c.Table()
	if err != nil {
		return err
	}
	state.Elems, err = c.Read()
	// A table with other rules is as good as none: it is made anew, and with it
	// its elements. A table that is there is to be seen all the same.
	state.Table, state.OtherTable = t.Exact, t.Present && !t.Exact
	return err
}

// match tells the ends of a pair of each other.
func match(state plan.State, pairs map[string][]plan.LinkKey) {
	for _, ends := range pairs {
		if len(ends) != 2 {
			continue
		}
		for i, k := range ends {
			l := state.Links[k]
			l.Peer = ends[1-i]
			state.Links[k] = l
		}
	}
}

// read adds what is ours in p to state.
func (p *place) read(state *plan.State, pairs map[string][]plan.LinkKey, sysctls []string) error {
	all, err := p.links()
	if err != nil {
		return err
	}
	ours := map[int]plan.LinkKey{}
	names := map[int]string{}
	for _, l := range all {
		key := plan.LinkKey{Place: p.name, Name: l.Name}
		names[l.Index] = l.Name
		switch {
		case l.loopback && p.name != plan.Host:
			if l.Up {
				state.Links[key] = plan.Link{Kind: plan.Loopback, Up: true}
			}
		case l.ours():
			ours[l.Index] = key
			state.Links[key] = p.planned(l)
			if l.Kind == string(plan.VethLink) && l.Alias != "" {
				pairs[l.Alias] = append(pairs[l.Alias], key)
			}
		}
	}
	if p.name == plan.Host {
		if err := p.readShapes(state, names); err != nil {
			return err
		}
	}
	if err := p.readAddrs(state, ours); err != nil {
		return err
	}
	if err := p.checkAddrs(state, names); err != nil {
		return err
	}
	if err := p.readRoutes(state, names); err != nil {
		return err
	}
	if err := p.readRules(state); err != nil {
		return err
	}
	return p.readSysctls(state, sysctls)
}

// planned is a link with the fields that plan sets.
func (p *place) planned(l LinkInfo) plan.Link {
	out := plan.Link{
		Kind: plan.LinkKind(l.Kind), Alias: l.Alias, MTU: l.MTU, MAC: l.MAC, Up: l.Up,
		Master: l.Master, Hairpin: l.hairpin, Isolated: l.isolated, NoLinkLocal: l.noLinkLocal,
	}
	if out.Kind == plan.BridgeLink {
		out.Promisc = l.promisc
	}
	if out.Kind == plan.VethLink && p.name == plan.Host || out.Kind == plan.Turnstile {
		out.MAC = [6]byte{} // the kernel's own choice
	}
	if out.Master == "" && out.Kind != plan.Turnstile {
		out.NoLinkLocal = false // only ports of a bridge and turnstiles are asked to have none
	}
	return out
}

func (p *place) readAddrs(state *plan.State, ours map[int]plan.LinkKey) error {
	if len(ours) == 0 {
		return nil
	}
	all, err := p.addrList()
	for _, a := range all {
		prefix := prefixOf(a.IPNet)
		if k, ok := ours[a.LinkIndex]; ok && !prefix.Addr().IsLinkLocalUnicast() {
			state.Addrs[plan.AddrKey{Link: k, Prefix: prefix}] = plan.Addr{}
		}
	}
	return err
}

// checkAddrs marks the addresses that have lost a route that the kernel made
// with them: to their subnet, or to themselves. The latter is not looked for
// with IPv6, where a worker makes it some time after the address
// (addrconf_dad_work) and nothing tells "not yet" from "not any more".
func (p *place) checkAddrs(state *plan.State, names map[int]string) error {
	type own struct {
		table  int
		dev    string
		prefix netip.Prefix
	}
	have := map[own]bool{}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		filter := &netlink.Route{Protocol: unix.RTPROT_KERNEL, Table: unix.RT_TABLE_UNSPEC}
		all, err := p.routeList(family, filter, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		if err != nil {
			return err
		}
		for _, r := range all {
			for _, way := range ways(r) {
				have[own{r.Table, names[way.LinkIndex], prefixOf(r.Dst)}] = true
			}
		}
	}
	for k := range state.Addrs {
		// A link that is down has no such routes and gets them when it comes up.
		if k.Link.Place != p.name || !state.Links[k.Link].Up {
			continue
		}
		itself := k.Prefix.Addr().Is6() || have[own{unix.RT_TABLE_LOCAL, k.Link.Name, netip.PrefixFrom(k.Prefix.Addr(), 32)}]
		subnet := k.Prefix.IsSingleIP() || have[own{unix.RT_TABLE_MAIN, k.Link.Name, k.Prefix.Masked()}]
		state.Addrs[k] = plan.Addr{Bare: !itself || !subnet}
	}
	return nil
}

func (p *place) readRoutes(state *plan.State, names map[int]string) error {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		filter := &netlink.Route{Protocol: plan.Protocol, Table: unix.RT_TABLE_UNSPEC}
		all, err := p.routeList(family, filter, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		if err != nil {
			return err
		}
		for _, r := range all {
			for _, way := range ways(r) {
				k, v := p.planRoute(way, family, names)
				state.Routes[k] = v
			}
		}
	}
	return nil
}

// ways takes a route apart: IPv6 shows those that differ in their gateways as
// one.
func ways(r netlink.Route) []netlink.Route {
	if len(r.MultiPath) == 0 {
		return []netlink.Route{r}
	}
	var all []netlink.Route
	for _, way := range r.MultiPath {
		one := r
		one.LinkIndex, one.Gw = way.LinkIndex, way.Gw
		all = append(all, one)
	}
	return all
}

func (p *place) planRoute(r netlink.Route, family int, names map[int]string) (plan.RouteKey, plan.Route) {
	v4 := family == unix.AF_INET
	dst := prefixOf(r.Dst)
	if !dst.IsValid() {
		dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		if v4 {
			dst = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
	}
	k := plan.RouteKey{Place: p.name, Table: r.Table, Dst: dst, Dev: names[r.LinkIndex], Metric: r.Priority}
	if !v4 && k.Metric == 1024 || !v4 && r.Type == unix.RTN_LOCAL && k.Metric == 0 {
		k.Metric = 0 // IPv6's default
	}
	return k, plan.Route{Gateway: addrOf(r.Gw, v4), Src: addrOf(r.Src, v4), Local: r.Type == unix.RTN_LOCAL}
}

func (p *place) readRules(state *plan.State) error {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		all, err := p.ruleList(family)
		if err != nil {
			return err
		}
		for _, r := range all {
			if r.Protocol == plan.Protocol {
				state.Rules[plan.RuleKey{Place: p.name, From: prefixOf(r.Src), Table: r.Table, Priority: r.Priority}] = struct{}{}
			}
		}
	}
	return nil
}

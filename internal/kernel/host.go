package kernel

import (
	"errors"
	"io/fs"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth/internal/foreign"
	"berth/internal/plan"
)

// Links returns all links of a place with their addresses.
func (k *Kernel) Links(name plan.Place) ([]LinkInfo, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p, err := k.session().place(name)
	if err != nil {
		return nil, err
	}
	all, err := p.links()
	if err != nil {
		return nil, err
	}
	addrs, err := p.addrList()
	of := map[int][]netip.Prefix{}
	for _, a := range addrs {
		of[a.LinkIndex] = append(of[a.LinkIndex], prefixOf(a.IPNet))
	}
	for i := range all {
		all[i].Addrs = of[all[i].Index]
	}
	return all, err
}

// Link returns one link of a place, without its addresses and master.
func (k *Kernel) Link(name plan.Place, link string) (LinkInfo, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p, err := k.session().place(name)
	if err != nil {
		return LinkInfo{}, err
	}
	l, err := p.link(link)
	if err != nil {
		return l, op("read link", link, name, err)
	}
	return l, nil
}

// LinkNames returns the names of all links of a place.
func (k *Kernel) LinkNames(name plan.Place) (map[string]bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p, err := k.session().place(name)
	if err != nil {
		return nil, err
	}
	all, err := p.links()
	out := make(map[string]bool, len(all))
	for _, l := range all {
		out[l.Name] = true
	}
	return out, err
}

// Routes returns every prefix that leads somewhere on the host: the
// destinations of all routes but the default ones, and the prefixes of all
// addresses.
func (k *Kernel) Routes() ([]netip.Prefix, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []netip.Prefix
	add := func(p netip.Prefix) {
		if p.IsValid() && p.Bits() > 0 && !p.Addr().IsMulticast() {
			out = append(out, p.Masked())
		}
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		all, err := k.host.routeList(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, err
		}
		for _, r := range all {
			add(prefixOf(r.Dst))
		}
	}
	addrs, err := k.host.addrList() // a link that is down has addresses and no routes
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		add(prefixOf(a.IPNet))
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	return slices.Compact(out), nil
}

// DefaultMTU is the MTU of the link of the default route, IPv4's before
// IPv6's; 1500 if there is none.
func (k *Kernel) DefaultMTU() (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	links, err := k.defaultLinks()
	switch {
	case len(links) > 0: // whatever IPv6 has to say
		return links[0].MTU, nil
	case err != nil:
		return 0, err
	}
	return 1500, nil
}

// defaultLinks are the links of the host's default routes, IPv4's first.
func (k *Kernel) defaultLinks() ([]LinkInfo, error) {
	all, err := k.host.links()
	if err != nil {
		return nil, err
	}
	var out []LinkInfo
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := k.host.routeList(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return out, err
		}
		for _, r := range routes {
			if p := prefixOf(r.Dst); p.IsValid() && p.Bits() > 0 {
				continue
			}
			if i := slices.IndexFunc(all, func(l LinkInfo) bool { return l.Index == r.LinkIndex }); i >= 0 {
				out = append(out, all[i])
			}
		}
	}
	return out, nil
}

// Uplinks returns the names of all links that are neither lo nor ours, by
// family. Both lists are the same: any link may get an address later.
func (k *Kernel) Uplinks() (v4, v6 []string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	all, err := k.host.links()
	if err != nil {
		return nil, nil, err
	}
	for _, l := range all {
		if !l.loopback && !l.ours() {
			v4 = append(v4, l.Name)
		}
	}
	return v4, slices.Clone(v4), nil
}

// A PortRange is a range of ports, both ends in it.
type PortRange struct{ Low, High uint16 }

// EphemeralPorts returns where random ports come from
// (net.ipv4.ip_local_port_range) and what of it is reserved
// (ip_local_reserved_ports).
func (k *Kernel) EphemeralPorts() (low, high uint16, reserved []PortRange, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	low, high = 32768, 60999 // the kernel's default, ip-sysctl.rst
	text, err := k.host.sysctl("net/ipv4/ip_local_port_range")
	if err != nil {
		return 0, 0, nil, err
	}
	if f := strings.Fields(text); len(f) == 2 {
		if r, ok := portRange(f[0] + "-" + f[1]); ok {
			low, high = r.Low, r.High
		}
	}
	text, err = k.host.sysctl("net/ipv4/ip_local_reserved_ports")
	if errors.Is(err, fs.ErrNotExist) {
		return low, high, nil, nil
	}
	for _, f := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' }) {
		if r, ok := portRange(f); ok {
			reserved = append(reserved, r)
		}
	}
	return low, high, reserved, err
}

func portRange(s string) (PortRange, bool) {
	a, b, ok := strings.Cut(s, "-")
	if !ok {
		b = a
	}
	low, err1 := strconv.ParseUint(a, 10, 16)
	high, err2 := strconv.ParseUint(b, 10, 16)
	return PortRange{uint16(low), uint16(high)}, err1 == nil && err2 == nil && low <= high
}

// ForwardChains names the forward chains of other tools.
func (k *Kernel) ForwardChains() ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c, err := k.firewall()
	if err != nil {
		return nil, err
	}
	rulesets, err := c.Foreign()
	var out []string
	for _, t := range rulesets {
		for _, ch := range t.Chains {
			if ch.Hook == foreign.Forward {
				out = append(out, t.Family+" "+t.Name+" "+ch.Name)
			}
		}
	}
	return out, err
}

// Obstacles returns what of other tools' firewalls drops what networks need.
func (k *Kernel) Obstacles(networks []foreign.Network) ([]foreign.Obstacle, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c, err := k.firewall()
	if err != nil {
		return nil, err
	}
	tables, err := c.Foreign()
	if err != nil {
		return nil, err
	}
	links, _ := k.defaultLinks() // best effort: without them less is understood
	for i := range networks {
		for _, l := range links {
			networks[i].Uplinks = append(networks[i].Uplinks, l.Name)
		}
	}
	bridged := foreign.Bridged{}
	if v, err := k.host.sysctl("net/bridge/bridge-nf-call-iptables"); err == nil {
		bridged.IPv4 = v == "1"
	}
	if v, err := k.host.sysctl("net/bridge/bridge-nf-call-ip6tables"); err == nil {
		bridged.IPv6 = v == "1"
	}
	return foreign.Obstacles(tables, networks, bridged), nil
}

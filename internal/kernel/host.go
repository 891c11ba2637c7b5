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
	s := k.session()
	defer s.close()
	p, err := s.place(name)
	if err != nil {
		return nil, err
	}
	all, err := p.links()
	if err != nil {
		return nil, err
	}
	of := map[int][]netip.Prefix{}
	err = retryDump(func() error {
		clear(of)
		addrs, err := p.h.AddrList(nil, netlink.FAMILY_ALL)
		for _, a := range addrs {
			of[a.LinkIndex] = append(of[a.LinkIndex], prefixOf(a.IPNet))
		}
		return err
	})
	for i := range all {
		all[i].Addrs = of[all[i].Index]
	}
	return all, err
}

// LinkNames returns the names of all links of a place.
func (k *Kernel) LinkNames(name plan.Place) (map[string]bool, error) {
	s := k.session()
	defer s.close()
	p, err := s.place(name)
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
	var out []netip.Prefix
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		err := retryDump(func() error {
			all, err := k.host.h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
			for _, r := range all {
				if p := prefixOf(r.Dst); p.IsValid() && p.Bits() > 0 && !p.Addr().IsMulticast() {
					out = append(out, p.Masked())
				}
			}
			return err
		})
		if err != nil {
			return nil, err
		}
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
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		var routes []netlink.Route
		err := retryDump(func() (err error) {
			routes, err = k.host.h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
			return err
		})
		if err != nil {
			return 0, err
		}
		for _, r := range routes {
			if p := prefixOf(r.Dst); (!p.IsValid() || p.Bits() == 0) && r.LinkIndex > 0 {
				if l, err := k.host.h.LinkByIndex(r.LinkIndex); err == nil {
					return l.Attrs().MTU, nil
				}
			}
		}
	}
	return 1500, nil
}

// Uplinks returns the names of all links that are neither lo nor ours, by
// family. Both lists are the same: any link may get an address later.
func (k *Kernel) Uplinks() (v4, v6 []string, err error) {
	all, err := k.host.links()
	if err != nil {
		return nil, nil, err
	}
	for _, l := range all {
		if !l.loopback && !strings.HasPrefix(l.Alias, plan.AliasPrefix) {
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
	c, err := k.firewall()
	if err != nil {
		return nil, err
	}
	tables, err := c.Foreign()
	if err != nil {
		return nil, err
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

package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth/internal/plan"
)

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, _ := netip.AddrFromSlice(n.IP)
	ones, size := n.Mask.Size()
	if size == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones)
}

func addrOf(ip net.IP, v4 bool) netip.Addr {
	a, ok := netip.AddrFromSlice(ip)
	if !ok {
		return netip.Addr{}
	}
	if v4 {
		a = a.Unmap()
	}
	return a
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func (p *place) addrOn(k plan.AddrKey) (netlink.Link, *netlink.Addr, error) {
	index, err := p.indexOf(k.Link.Name)
	if err != nil {
		return nil, nil, err
	}
	a := &netlink.Addr{IPNet: ipNet(k.Prefix)}
	if k.Prefix.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD // nothing waits for duplicate address detection
	}
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index, Name: k.Link.Name}}, a, nil
}

func (p *place) putAddr(k plan.AddrKey) error {
	l, a, err := p.addrOn(k)
	if err != nil {
		return err
	}
	return p.h.AddrReplace(l, a)
}

func (p *place) dropAddr(k plan.AddrKey) error {
	l, a, err := p.addrOn(k)
	if err != nil {
		return ignoreGone(err)
	}
	return ignoreGone(p.h.AddrDel(l, a))
}

func (p *place) route(k plan.RouteKey, v plan.Route) (*netlink.Route, error) {
	index, err := p.indexOf(k.Dev)
	if err != nil {
		return nil, err
	}
	r := &netlink.Route{
		LinkIndex: index, Dst: ipNet(k.Dst), Table: k.Table, Priority: k.Metric,
		Protocol: plan.Protocol, Family: familyOf(k.Dst.Addr()), Scope: netlink.SCOPE_UNIVERSE,
	}
	if v.Gateway.IsValid() {
		r.Gw = v.Gateway.AsSlice()
	} else if k.Dst.Addr().Is4() {
		r.Scope = netlink.SCOPE_LINK
	}
	if v.Src.IsValid() {
		r.Src = v.Src.AsSlice()
	}
	if v.Local {
		r.Type = unix.RTN_LOCAL
		if k.Dst.Addr().Is4() {
			r.Scope = netlink.SCOPE_HOST
		}
	}
	return r, nil
}

func (p *place) putRoute(k plan.RouteKey, v plan.Route) error {
	r, err := p.route(k, v)
	if err != nil {
		return err
	}
	return p.h.RouteReplace(r)
}

func (p *place) dropRoute(k plan.RouteKey, v plan.Route) error {
	r, err := p.route(k, v)
	if err != nil {
		return ignoreGone(err)
	}
	return ignoreGone(p.h.RouteDel(r))
}

func rule(k plan.RuleKey) *netlink.Rule {
	r := netlink.NewRule()
	r.Family, r.Src, r.Table, r.Priority, r.Protocol = familyOf(k.From.Addr()), ipNet(k.From), k.Table, k.Priority, plan.Protocol
	return r
}

func (p *place) putRule(k plan.RuleKey) error {
	err := p.h.RuleAdd(rule(k))
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

func (p *place) dropRule(k plan.RuleKey) error { return ignoreGone(p.h.RuleDel(rule(k))) }

// retryDump repeats a dump that was cut by a change (NLM_F_DUMP_INTR): what it
// returned may lack or repeat entries.
func retryDump(dump func() error) error {
	const tries = 10
	var err error
	for range tries {
		if err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
	}
	return fmt.Errorf("changed at every look: %w", err)
}

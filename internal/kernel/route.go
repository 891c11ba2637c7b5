package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"berth"
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

// addrRequest makes a request about an address.
func (p *place) addrRequest(kind, flags int, k plan.AddrKey) (*nl.NetlinkRequest, error) {
	index, err := p.indexOf(k.Link.Name)
	if err != nil {
		return nil, err
	}
	req := p.request(kind, flags)
	msg := nl.NewIfAddrmsg(familyOf(k.Prefix.Addr()))
	msg.Index, msg.Prefixlen = uint32(index), uint8(k.Prefix.Bits())
	if k.Prefix.Addr().Is6() {
		msg.IfAddrmsg.Flags = unix.IFA_F_NODAD // nothing waits for duplicate address detection
	}
	req.AddData(msg)
	ip := k.Prefix.Addr().AsSlice()
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, ip))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, ip))
	if b, ok := broadcast(k.Prefix); ok {
		req.AddData(nl.NewRtAttr(unix.IFA_BROADCAST, b.AsSlice()))
	}
	return req, nil
}

// broadcast is the last address of an IPv4 subnet that has room for one.
func broadcast(p netip.Prefix) (netip.Addr, bool) {
	if !p.Addr().Is4() || p.Bits() > 30 {
		return netip.Addr{}, false
	}
	ip := p.Addr().As4()
	binary.BigEndian.PutUint32(ip[:], binary.BigEndian.Uint32(ip[:])|(1<<(32-p.Bits())-1))
	return netip.AddrFrom4(ip), true
}

func (p *place) putAddr(k plan.AddrKey, noSubnet bool) error {
	req, err := p.addrRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, k)
	if err == nil {
		if noSubnet {
			flags := uint32(unix.IFA_F_NOPREFIXROUTE)
			if k.Prefix.Addr().Is6() {
				flags |= unix.IFA_F_NODAD
			}
			req.AddData(nl.NewRtAttr(unix.IFA_FLAGS, nl.Uint32Attr(flags)))
		}
		_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	}
	if !errors.Is(err, unix.EEXIST) || noSubnet {
		return err
	}
	if req, err = p.addrRequest(unix.RTM_NEWADDR, unix.NLM_F_REPLACE, k); err == nil {
		_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	}
	if err == nil {
		err = p.putOwnRoutes(k)
	}
	return err
}

// putOwnRoutes puts the routes that the kernel made with an address, and makes
// with it only. Those put by hand go with the address as its own do, but for
// the local one of IPv6, which is left to the kernel.
func (p *place) putOwnRoutes(k plan.AddrKey) error {
	src, v4 := k.Prefix.Addr(), k.Prefix.Addr().Is4()
	if v4 {
		itself := plan.RouteKey{Table: unix.RT_TABLE_LOCAL, Dst: netip.PrefixFrom(src, src.BitLen()), Dev: k.Link.Name}
		if err := p.putKernelRoute(itself, plan.Route{Src: src, Local: true}); err != nil {
			return err
		}
	}
	if k.Prefix.IsSingleIP() {
		return nil
	}
	subnet, v := plan.RouteKey{Table: unix.RT_TABLE_MAIN, Dst: k.Prefix.Masked(), Dev: k.Link.Name}, plan.Route{Src: src}
	if !v4 {
		v.Src, subnet.Metric = netip.Addr{}, 256 // IP6_RT_PRIO_ADDRCONF
	}
	return p.putKernelRoute(subnet, v)
}

// putKernelRoute puts a route in the kernel's own name.
func (p *place) putKernelRoute(k plan.RouteKey, v plan.Route) error {
	req, err := p.routeRequest(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, k, v)
	if err != nil {
		return err
	}
	req.Data[0].(*nl.RtMsg).Protocol = unix.RTPROT_KERNEL
	_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENETDOWN) { // a link that comes up gets it
		return nil
	}
	return err
}

func (p *place) dropAddr(k plan.AddrKey) error {
	req, err := p.addrRequest(unix.RTM_DELADDR, 0, k)
	if err == nil {
		_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	}
	return ignoreGone(err)
}

// routeRequest makes a request about a route.
func (p *place) routeRequest(kind, flags int, k plan.RouteKey, v plan.Route) (*nl.NetlinkRequest, error) {
	index, err := p.indexOf(k.Dev)
	if err != nil {
		return nil, err
	}
	req := p.request(kind, flags)
	msg := nl.NewRtMsg()
	msg.Family, msg.Dst_len, msg.Protocol = uint8(familyOf(k.Dst.Addr())), uint8(k.Dst.Bits()), plan.Protocol
	msg.Table = unix.RT_TABLE_UNSPEC // RTA_TABLE has room for the number
	v4 := k.Dst.Addr().Is4()
	switch {
	case v.Local:
		msg.Type = unix.RTN_LOCAL
		if v4 {
			msg.Scope = unix.RT_SCOPE_HOST
		}
	case v4 && !v.Gateway.IsValid():
		msg.Scope = unix.RT_SCOPE_LINK
	}
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.RTA_TABLE, nl.Uint32Attr(uint32(k.Table))))
	req.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
	if k.Dst.Bits() > 0 {
		req.AddData(nl.NewRtAttr(unix.RTA_DST, k.Dst.Masked().Addr().AsSlice()))
	}
	if v.Gateway.IsValid() {
		req.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, v.Gateway.AsSlice()))
	}
	if v.Src.IsValid() {
		req.AddData(nl.NewRtAttr(unix.RTA_PREFSRC, v.Src.AsSlice()))
	}
	if k.Metric > 0 {
		req.AddData(nl.NewRtAttr(unix.RTA_PRIORITY, nl.Uint32Attr(uint32(k.Metric))))
	}
	return req, nil
}

func (p *place) newRoute(flags int, k plan.RouteKey, v plan.Route) error {
	req, err := p.routeRequest(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|flags, k, v)
	if err == nil {
		_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	}
	return err
}

// putRoute puts a route, and refuses to put it in the place of somebody else's.
func (p *place) putRoute(k plan.RouteKey, v plan.Route) error {
	err := p.newRoute(unix.NLM_F_EXCL, k, v)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	there, err := p.routesLike(k)
	if err != nil {
		return err
	}
	old, stands, beside := plan.Route{}, false, false
	for _, r := range there {
		switch {
		case r.Protocol == plan.Protocol && r.key == k:
			old, stands = r.value, true
		case r.Protocol == plan.Protocol:
			beside = true // another link of ours leads there
		}
	}
	switch {
	case stands && old == v:
		return nil
	case there[0].Protocol != plan.Protocol: // a replacement takes the first
		return fmt.Errorf("there is one that is not Berth's (%s): delete it or give it a metric: %w", there[0], berth.ErrExists)
	case !beside || k.Dst.Addr().Is4():
		return p.newRoute(unix.NLM_F_REPLACE, k, v)
	}
	// IPv6 replaces by destination and metric and does not look at the link:
	// a second network's route to ::1 would take the place of the first one's.
	if err := p.newRoute(unix.NLM_F_APPEND, k, v); err != nil || !stands {
		return err
	}
	return p.dropRoute(k, old)
}

// A seenRoute is a route of anybody's with what plan would have of it.
type seenRoute struct {
	netlink.Route
	key   plan.RouteKey
	value plan.Route
}

// String is the route as ip-route(8) names it, without its destination.
func (r seenRoute) String() string {
	s := "dev " + r.key.Dev
	if r.value.Gateway.IsValid() {
		s = "via " + r.value.Gateway.String() + " " + s
	}
	return s
}

// routesLike lists the routes that stand where k would: those of its table,
// destination and metric, in their order.
func (p *place) routesLike(k plan.RouteKey) ([]seenRoute, error) {
	links, err := p.links()
	if err != nil {
		return nil, err
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Index] = l.Name
	}
	all, err := p.routeList(familyOf(k.Dst.Addr()), &netlink.Route{Table: k.Table}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, err
	}
	var out []seenRoute
	for _, r := range all {
		for _, way := range ways(r) {
			key, value := p.planRoute(way, familyOf(k.Dst.Addr()), names)
			if key.Dst == k.Dst && key.Metric == k.Metric && way.Tos == 0 {
				out = append(out, seenRoute{way, key, value})
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("it was there and is not: %w", berth.ErrDrifted)
	}
	return out, nil
}

func (p *place) dropRoute(k plan.RouteKey, v plan.Route) error {
	req, err := p.routeRequest(unix.RTM_DELROUTE, 0, k, v)
	if err == nil {
		_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	}
	return ignoreGone(err)
}

func rule(k plan.RuleKey) *netlink.Rule {
	r := netlink.NewRule()
	r.Family, r.Src, r.Table, r.Priority, r.Protocol = familyOf(k.From.Addr()), ipNet(k.From), k.Table, k.Priority, plan.Protocol
	return r
}

func (p *place) putRule(k plan.RuleKey) error {
	h, err := p.handle()
	if err == nil {
		err = h.RuleAdd(rule(k))
	}
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

func (p *place) dropRule(k plan.RuleKey) error {
	h, err := p.handle()
	if err == nil {
		err = h.RuleDel(rule(k))
	}
	return ignoreGone(err)
}

func (p *place) addrList() (all []netlink.Addr, err error) {
	h, err := p.handle()
	if err != nil {
		return nil, err
	}
	err = retryDump(func() error {
		all, err = h.AddrList(nil, netlink.FAMILY_ALL)
		return err
	})
	return all, err
}

func (p *place) routeList(family int, filter *netlink.Route, mask uint64) (all []netlink.Route, err error) {
	h, err := p.handle()
	if err != nil {
		return nil, err
	}
	err = retryDump(func() error {
		all, err = h.RouteListFiltered(family, filter, mask)
		return err
	})
	return all, err
}

func (p *place) ruleList(family int) (all []netlink.Rule, err error) {
	h, err := p.handle()
	if err != nil {
		return nil, err
	}
	err = retryDump(func() error {
		all, err = h.RuleList(family)
		return err
	})
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil // without IPv6
	}
	return all, err
}

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

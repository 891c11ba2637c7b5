package kernel

import (
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth"
	"berth/internal/plan"
)

// A filter picks the connections to forget.
type filter struct {
	addrs map[netip.Addr]bool
	ports map[berth.PortKey]bool
	cut   bool
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f filter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	for _, ip := range [][]byte{flow.Forward.SrcIP, flow.Forward.DstIP, flow.Reverse.SrcIP, flow.Reverse.DstIP} {
		if a, ok := netip.AddrFromSlice(ip); ok && f.addrs[a.Unmap()] {
			return true
		}
	}
	proto, ok := map[uint8]berth.Protocol{unix.IPPROTO_TCP: berth.TCP, unix.IPPROTO_UDP: berth.UDP, unix.IPPROTO_SCTP: berth.SCTP}[flow.Forward.Protocol]
	if !ok || !f.cut && proto != berth.UDP {
		return false
	}
	dst, ok := netip.AddrFromSlice(flow.Forward.DstIP)
	if !ok {
		return false
	}
	dst = dst.Unmap()
	any := netip.IPv6Unspecified()
	if dst.Is4() {
		any = netip.IPv4Unspecified()
	}
	return f.ports[berth.PortKey{Protocol: proto, HostIP: dst, HostPort: flow.Forward.DstPort}] ||
		f.ports[berth.PortKey{Protocol: proto, HostIP: any, HostPort: flow.Forward.DstPort}]
}

// flush forgets connections of the host: the table is listed and what matches
// deleted, since the kernel's own filter knows no "either end".
func (s session) flush(step plan.FlushConntrack) error {
	f := filter{map[netip.Addr]bool{}, map[berth.PortKey]bool{}, step.Cut}
	families := map[netlink.InetFamily]bool{}
	note := func(a netip.Addr) {
		families[netlink.InetFamily(familyOf(a))] = true
	}
	for _, a := range step.Addrs {
		f.addrs[a] = true
		note(a)
	}
	for _, p := range step.Ports {
		if p.Protocol == berth.UDP || step.Cut {
			f.ports[p] = true
			note(p.HostIP)
		}
	}
	if len(families) == 0 {
		return nil
	}
	errs := make(chan error, len(families))
	for family := range families {
		go func() { errs <- s.k.host.forget(family, f) }()
	}
	var all error
	for range families {
		all = errors.Join(all, <-errs)
	}
	return op("forget", "connections", plan.Host, all)
}

// forget deletes the connections of one family that f picks. A listing takes
// some 9 ms even of an empty table, so families are listed side by side.
func (p *place) forget(family netlink.InetFamily, f filter) error {
	var h *netlink.Handle
	err := p.ns.Do(func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_NETFILTER)
		return err
	})
	if err != nil {
		return err
	}
	defer h.Close()
	err = retryDump(func() error {
		_, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, family, f)
		return err
	})
	// A kernel without conntrack has nothing to forget. An entry may end by
	// itself between the look and the deletion.
	if gone(err) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

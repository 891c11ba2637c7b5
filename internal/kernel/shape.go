package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"berth"
	"berth/internal/plan"
)

// By these numbers Berth knows its own in tc(8), on links of others too.
const (
	ourQueue  = 0x6274 << 16 // the handle of our queues, "6274:"
	ourFilter = 9800         // the priority of our filters
)

// What pkt_sched.h, pkt_cls.h and tc_mirred.h call otherwise.
const (
	tcRoot        = 0xffffffff // TC_H_ROOT
	tcIngress     = 0xfffffff1 // TC_H_INGRESS: where a queue of what comes in stands
	ingressHandle = 0xffff0000
	ingressChain  = 0xfffffff2 // where its filters are, those of clsact too
	tbfParms      = 1
	tbfRate64     = 4
	tbfBurst      = 6
	u32Sel        = 5
	u32Act        = 7
	u32Terminal   = 1
	actKind       = 1
	actOptions    = 2
	mirredParms   = 2
	actStolen     = 4
	mirredAway    = 1  // TCA_EGRESS_REDIR
	mirredSize    = 28 // struct tc_mirred
	schedTick     = 64 // nanoseconds (PSCHED_SHIFT)
)

// tc makes a request about the packet scheduler of a link.
func (p *place) tc(kind, flags, index int, parent, handle, info uint32) *nl.NetlinkRequest {
	req := p.request(kind, flags)
	req.AddData(&nl.TcMsg{Family: unix.AF_UNSPEC, Ifindex: int32(index), Parent: parent, Handle: handle, Info: info})
	return req
}

// filterInfo is the priority of a filter, for every protocol.
func filterInfo() uint32 {
	return ourFilter<<16 | uint32(binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}))
}

// putShape brings what holds back on a link from was to shape.
func (p *place) putShape(step plan.PutShape) error {
	l, err := p.link(step.Key.Name)
	if err != nil {
		return err
	}
	index := l.Index
	want, was := step.Shape, step.Was
	if want.Divert != was.Divert {
		if was.Divert != "" {
			if err := p.straighten(index); err != nil {
				return err
			}
		}
		if want.Divert != "" {
			if err := p.divert(index, want.Divert); err != nil {
				return fmt.Errorf("divert to %s: %w", want.Divert, err)
			}
		}
	}
	if want.Rate > 0 {
		return p.putQueue(l, want)
	}
	if was.Rate > 0 {
		return p.dropQueue(index)
	}
	return nil
}

// putQueue puts our queue at the root of a link, or changes the one that is
// there; what waits in it stays. On a link of ours it takes the place of any
// other; on another's it does not.
func (p *place) putQueue(l LinkInfo, s plan.Shape) error {
	flags := unix.NLM_F_CREATE
	if l.ours() {
		flags |= unix.NLM_F_REPLACE
	}
	req := p.tc(unix.RTM_NEWQDISC, flags, l.Index, tcRoot, ourQueue, 0)
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("tbf")))
	// struct tc_tbf_qopt: two tc_ratespec of 12 bytes, then limit, buffer, mtu.
	var q [36]byte
	q[1] = nl.LINKLAYER_ETHERNET // else the kernel wants a table of the rate
	binary.NativeEndian.PutUint32(q[8:], uint32(min(s.Rate, 1<<32-1)))
	binary.NativeEndian.PutUint32(q[24:], s.Queue)
	o := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	o.AddRtAttr(tbfParms, q[:])
	o.AddRtAttr(tbfBurst, nl.Uint32Attr(s.Burst))
	if s.Rate >= 1<<32 {
		o.AddRtAttr(tbfRate64, nl.Uint64Attr(s.Rate))
	}
	req.AddData(o)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("a queue of somebody else's stands there, and so does the link ('tc qdisc del dev %s root' removes it): %w (%w)", l.Name, berth.ErrConflict, err)
	}
	return lacks(err, "tbf: a limit (CONFIG_NET_SCH_TBF)")
}

// lacks tells what a kernel that does not know something is without.
func lacks(err error, what string) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("%s: %w (%w)", what, berth.ErrUnsupported, err)
	}
	return err
}

// dropQueue takes our queue from the root of a link; another's stays.
func (p *place) dropQueue(index int) error {
	_, err := p.tc(unix.RTM_DELQDISC, 0, index, tcRoot, ourQueue, 0).Execute(unix.NETLINK_ROUTE, 0)
	if errors.Is(err, unix.EINVAL) { // the handle is another's
		return nil
	}
	return ignoreGone(err)
}

// divert sends all that comes in by a link through a turnstile. The filter is
// u32's, which every kernel has that has any; matchall is not in all.
func (p *place) divert(index int, turnstile string) error {
	to, err := p.indexOf(turnstile)
	if err != nil {
		return err
	}
	req := p.tc(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_EXCL, index, tcIngress, ingressHandle, 0)
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("ingress")))
	if _, err = req.Execute(unix.NETLINK_ROUTE, 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return lacks(err, "a limit of what goes out (CONFIG_NET_SCH_INGRESS)")
	}
	if err := p.dropFilters(index); err != nil { // one that led elsewhere
		return err
	}
	req = p.tc(unix.RTM_NEWTFILTER, unix.NLM_F_CREATE|unix.NLM_F_EXCL, index, ingressChain, 0, filterInfo())
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("u32")))
	// struct tc_u32_sel with one key whose mask is zero: everything.
	var sel [32]byte
	sel[0], sel[2] = u32Terminal, 1
	var m [mirredSize]byte
	binary.NativeEndian.PutUint32(m[8:], actStolen)
	binary.NativeEndian.PutUint32(m[20:], mirredAway)
	binary.NativeEndian.PutUint32(m[24:], uint32(to))
	o := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	o.AddRtAttr(u32Sel, sel[:])
	act := o.AddRtAttr(u32Act, nil).AddRtAttr(1, nil)
	act.AddRtAttr(actKind, nl.ZeroTerminated("mirred"))
	act.AddRtAttr(actOptions, nil).AddRtAttr(mirredParms, m[:])
	req.AddData(o)
	_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	return lacks(err, "a limit of what goes out (CONFIG_NET_CLS_U32, CONFIG_NET_ACT_MIRRED)")
}

// straighten takes our filter from a link, and what it stood in, if nobody
// else's filter stands there.
func (p *place) straighten(index int) error {
	if err := p.dropFilters(index); err != nil {
		return err
	}
	left, err := p.filters(index, 0)
	if err != nil || len(left) > 0 {
		return ignoreGone(err)
	}
	_, err = p.tc(unix.RTM_DELQDISC, 0, index, tcIngress, ingressHandle, 0).Execute(unix.NETLINK_ROUTE, 0)
	if errors.Is(err, unix.EINVAL) { // there is none
		return nil
	}
	return ignoreGone(err)
}

// dropFilters takes our filters from what comes in by a link.
func (p *place) dropFilters(index int) error {
	_, err := p.tc(unix.RTM_DELTFILTER, 0, index, ingressChain, 0, filterInfo()).Execute(unix.NETLINK_ROUTE, 0)
	if errors.Is(err, unix.EINVAL) { // there is nothing to filter in
		return nil
	}
	return ignoreGone(err)
}

// filters lists the filters of what comes in by a link, of one priority or all.
func (p *place) filters(index int, info uint32) ([][]byte, error) {
	req := p.tc(unix.RTM_GETTFILTER, unix.NLM_F_DUMP, index, ingressChain, 0, info)
	req.Flags &^= unix.NLM_F_ACK
	return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWTFILTER)
}

// readShapes adds what holds back on the links of p: names by index.
func (p *place) readShapes(state *plan.State, names map[int]string) error {
	var queues [][]byte
	err := retryDump(func() (err error) {
		req := p.tc(unix.RTM_GETQDISC, unix.NLM_F_DUMP, 0, 0, 0, 0)
		req.Flags &^= unix.NLM_F_ACK
		queues, err = req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWQDISC)
		return err
	})
	if errors.Is(err, unix.EOPNOTSUPP) { // a kernel without a packet scheduler
		return nil
	}
	if err != nil {
		return err
	}
	for _, m := range queues {
		msg := nl.DeserializeTcMsg(m)
		k := plan.LinkKey{Place: p.name, Name: names[int(msg.Ifindex)]}
		s := state.Shapes[k]
		switch msg.Handle {
		case ourQueue:
			err = parseQueue(m[msg.Len():], &s)
		case ingressHandle:
			err = p.readDiversion(int(msg.Ifindex), names, &s)
		}
		if err != nil {
			return err
		}
		if s != (plan.Shape{}) {
			state.Shapes[k] = s
		}
	}
	return nil
}

// attrs finds attributes by their types, one inside the other.
func attrs(b []byte, path ...uint16) ([]byte, error) {
	for _, want := range path {
		all, err := nl.ParseRouteAttr(b)
		if err != nil {
			return nil, err
		}
		b = nil
		for _, a := range all {
			if a.Attr.Type&nl.NLA_TYPE_MASK == want {
				b = a.Value
			}
		}
	}
	return b, nil
}

// parseQueue reads our queue. One of another kind holds back in no way that is
// ours.
func parseQueue(b []byte, s *plan.Shape) error {
	kind, err := attrs(b, nl.TCA_KIND)
	if err != nil || text(kind) != "tbf" {
		return err
	}
	q, err := attrs(b, nl.TCA_OPTIONS, tbfParms)
	if err != nil || len(q) < 32 {
		return err
	}
	s.Rate = uint64(number(q[8:]))
	wide, err := attrs(b, nl.TCA_OPTIONS, tbfRate64)
	if err != nil {
		return err
	}
	if len(wide) == 8 {
		s.Rate = binary.NativeEndian.Uint64(wide)
	}
	s.Queue = number(q[24:])
	took := float64(number(q[28:])) * schedTick
	s.Burst = uint32(plan.RoundBurst(s.Rate, uint64(took*float64(s.Rate)/1e9)))
	return nil
}

// readDiversion reads where our filter sends what comes in by a link.
func (p *place) readDiversion(index int, names map[int]string, s *plan.Shape) error {
	all, err := p.filters(index, filterInfo())
	if err != nil {
		return ignoreGone(err)
	}
	for _, m := range all {
		msg := nl.DeserializeTcMsg(m)
		to, err := attrs(m[msg.Len():], nl.TCA_OPTIONS, u32Act, 1, actOptions, mirredParms)
		if err != nil {
			return err
		}
		if len(to) >= mirredSize {
			s.Divert = names[int(number(to[24:]))]
		}
	}
	return nil
}

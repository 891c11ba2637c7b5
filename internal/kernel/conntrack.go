package kernel

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"berth"
	"berth/internal/plan"
)

// The netlink library lists connections by family. Its listing is not used
// because each goes through the kernel's whole table, 9 ms even where that is
// empty, and it deletes by family only.

// A filter picks the connections to forget.
type filter struct {
	addrs map[netip.Addr]bool // of who began a connection, or who answers
	ports map[berth.PortKey]bool
}

// picks reports whether a connection is to be forgotten.
func (f filter) picks(c connection) bool {
	if f.addrs[c.original.src] || f.addrs[c.reply.src] {
		return true
	}
	k := berth.PortKey{Protocol: protocols[c.original.protocol], HostIP: c.original.dst, HostPort: c.original.dport}
	if f.ports[k] {
		return true
	}
	k.HostIP = netip.IPv6Unspecified()
	if c.original.dst.Is4() {
		k.HostIP = netip.IPv4Unspecified()
	}
	return f.ports[k]
}

var protocols = map[uint8]berth.Protocol{unix.IPPROTO_TCP: berth.TCP, unix.IPPROTO_UDP: berth.UDP, unix.IPPROTO_SCTP: berth.SCTP}

// flush forgets connections of the host. It comes when the links of their
// addresses are gone: beside their deletion, a sandbox that goes on sending can
// begin others behind the look.
func (s session) flush(step plan.FlushConntrack) error {
	f := filter{map[netip.Addr]bool{}, map[berth.PortKey]bool{}}
	for _, a := range step.Addrs {
		f.addrs[a] = true
	}
	for _, p := range step.Ports {
		if p.Protocol == berth.UDP || step.Cut {
			f.ports[p] = true
		}
	}
	if len(f.addrs)+len(f.ports) == 0 {
		return nil
	}
	err := s.k.forget(f)
	// A kernel without conntrack has nothing to forget.
	if gone(err) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return op("forget", "connections", plan.Host, err)
}

// few is how many passes of the kernel over its table take less than to list it.
const few = 8

// forget deletes the connections that f picks: by the kernel's own filter, one
// pass for each, or by a list of all.
func (k *Kernel) forget(f filter) error {
	if n, err := k.host.sysctl("net/netfilter/nf_conntrack_count"); err == nil && n == "0" {
		return nil
	}
	if k.connections == nil {
		err := k.host.ns.Do(func() error {
			s, err := nl.GetNetlinkSocketAt(vnetns.None(), vnetns.None(), unix.NETLINK_NETFILTER)
			if err != nil {
				return err
			}
			_ = s.SetReceiveBufferSize(receiveBuffer, true) // best effort
			k.connections = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: {Socket: s}}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if 2*len(f.addrs)+len(f.ports) <= few {
		err := k.forgetFew(f)
		if !errors.Is(err, unix.EINVAL) {
			return err
		}
		// Linux before 6.11 deletes by a whole tuple only (ctnetlink_del_conntrack).
	}
	var found [][]byte
	err := retryDump(func() error {
		found = nil
		req := k.conntrackRequest(unix.AF_UNSPEC, nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP)
		var bad error
		err := req.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(m []byte) bool {
			c, err := parseConnection(m)
			if bad = errors.Join(bad, err); err == nil && f.picks(c) {
				found = append(found, slices.Clone(m))
			}
			return true
		})
		return errors.Join(err, bad)
	})
	for i := 0; i < len(found) && err == nil; i++ {
		// It is named by all that was said of it, its id among that: another one
		// of the same addresses and ports is not meant. It may end by itself
		// before.
		req := k.conntrackRequest(found[i][0], nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK)
		req.AddRawData(found[i][nl.SizeofNfgenmsg:])
		_, err = req.Execute(unix.NETLINK_NETFILTER, 0)
		err = ignoreGone(err)
	}
	return err
}

// Numbers that the netlink library does not name: of nfnetlink_conntrack.h, and
// the flags of a filter (nf_internals.h of Linux 5.8).
const (
	ctaFilter           = 25
	ctaFilterOrigFlags  = 1
	ctaFilterReplyFlags = 2

	filterSrc   = 1 << 0
	filterDst   = 1 << 1
	filterProto = 1 << 3
	filterDport = 1 << 5
)

func (k *Kernel) forgetFew(f filter) error {
	for a := range f.addrs {
		src := nl.CTA_IP_V6_SRC
		if a.Is4() {
			src = nl.CTA_IP_V4_SRC
		}
		for _, side := range [][2]int{{nl.CTA_TUPLE_ORIG, ctaFilterOrigFlags}, {nl.CTA_TUPLE_REPLY, ctaFilterReplyFlags}} {
			tuple := nl.NewRtAttr(side[0]|unix.NLA_F_NESTED, nil)
			tuple.AddRtAttr(nl.CTA_TUPLE_IP|unix.NLA_F_NESTED, nil).AddRtAttr(src, a.AsSlice())
			if err := k.forgetBy(familyOf(a), tuple, side[1], filterSrc); err != nil {
				return err
			}
		}
	}
	for p := range f.ports {
		flags := filterProto | filterDport
		tuple := nl.NewRtAttr(nl.CTA_TUPLE_ORIG|unix.NLA_F_NESTED, nil)
		if !p.HostIP.IsUnspecified() {
			flags |= filterDst
			dst := nl.CTA_IP_V6_DST
			if p.HostIP.Is4() {
				dst = nl.CTA_IP_V4_DST
			}
			tuple.AddRtAttr(nl.CTA_TUPLE_IP|unix.NLA_F_NESTED, nil).AddRtAttr(dst, p.HostIP.AsSlice())
		}
		proto := tuple.AddRtAttr(nl.CTA_TUPLE_PROTO|unix.NLA_F_NESTED, nil)
		proto.AddRtAttr(nl.CTA_PROTO_NUM, []byte{queries[p.Protocol].number})
		proto.AddRtAttr(nl.CTA_PROTO_DST_PORT, nl.BEUint16Attr(p.HostPort))
		if err := k.forgetBy(familyOf(p.HostIP), tuple, ctaFilterOrigFlags, flags); err != nil {
			return err
		}
	}
	return nil
}

// forgetBy deletes the connections that are like a tuple in what flags name.
func (k *Kernel) forgetBy(family int, tuple *nl.RtAttr, side, flags int) error {
	req := k.conntrackRequest(uint8(family), nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK)
	req.AddData(tuple)
	by := nl.NewRtAttr(ctaFilter|unix.NLA_F_NESTED, nil)
	by.AddRtAttr(side, nl.Uint32Attr(uint32(flags)))
	req.AddData(by)
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	return ignoreGone(err)
}

func (k *Kernel) conntrackRequest(family uint8, operation, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|operation, flags)
	req.Sockets = k.connections
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family})
	return req
}

// A connection is one of the kernel's table, as its first packet named it and
// as the answers do.
type connection struct{ original, reply tuple }

type tuple struct {
	src, dst netip.Addr
	protocol uint8
	dport    uint16
}

// parseConnection reads a message of nfnetlink_conntrack.h.
func parseConnection(m []byte) (c connection, err error) {
	attrs, err := nl.ParseRouteAttr(m[nl.SizeofNfgenmsg:])
	for _, a := range attrs {
		var into *tuple
		switch a.Attr.Type & nl.NLA_TYPE_MASK {
		case nl.CTA_TUPLE_ORIG:
			into = &c.original
		case nl.CTA_TUPLE_REPLY:
			into = &c.reply
		default:
			continue
		}
		parts, err := nl.ParseRouteAttr(a.Value)
		if err != nil {
			return c, err
		}
		for _, part := range parts {
			if err := into.parse(part.Attr.Type&nl.NLA_TYPE_MASK, part.Value); err != nil {
				return c, err
			}
		}
	}
	return c, err
}

func (t *tuple) parse(part uint16, b []byte) error {
	attrs, err := nl.ParseRouteAttr(b)
	for _, a := range attrs {
		kind := a.Attr.Type & nl.NLA_TYPE_MASK
		switch {
		case part == nl.CTA_TUPLE_IP && (kind == nl.CTA_IP_V4_SRC || kind == nl.CTA_IP_V6_SRC):
			t.src, _ = netip.AddrFromSlice(a.Value)
		case part == nl.CTA_TUPLE_IP && (kind == nl.CTA_IP_V4_DST || kind == nl.CTA_IP_V6_DST):
			t.dst, _ = netip.AddrFromSlice(a.Value)
		case part == nl.CTA_TUPLE_PROTO && kind == nl.CTA_PROTO_NUM && len(a.Value) > 0:
			t.protocol = a.Value[0]
		case part == nl.CTA_TUPLE_PROTO && kind == nl.CTA_PROTO_DST_PORT && len(a.Value) > 1:
			t.dport = binary.BigEndian.Uint16(a.Value)
		}
	}
	return err
}

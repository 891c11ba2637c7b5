package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"berth"
	"berth/internal/plan"
)

// link reads one link.
func (p *place) link(name string) (LinkInfo, error) {
	req := p.request(unix.RTM_GETLINK, 0)
	req.Flags &^= unix.NLM_F_ACK
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	msgs, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil {
		return LinkInfo{}, err
	}
	if len(msgs) != 1 {
		return LinkInfo{}, fmt.Errorf("%d answers for link %s", len(msgs), name)
	}
	return parseLink(msgs[0])
}

// links reads all links.
func (p *place) links() ([]LinkInfo, error) {
	var out []LinkInfo
	err := retryDump(func() error {
		out = nil
		req := p.request(unix.RTM_GETLINK, unix.NLM_F_DUMP)
		req.Flags &^= unix.NLM_F_ACK
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
		msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
		if err != nil {
			return err
		}
		for _, m := range msgs {
			l, err := parseLink(m)
			if err != nil {
				return err
			}
			out = append(out, l)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	names := make(map[int]string, len(out))
	for _, l := range out {
		names[l.Index] = l.Name
	}
	for i := range out {
		if out[i].master != 0 {
			out[i].Master = names[out[i].master]
		}
	}
	return out, nil
}

// A LinkInfo is a link as it is.
type LinkInfo struct {
	Name, Alias, Kind string
	Index, MTU        int
	MAC               berth.MAC
	Master            string // empty from a look at one link
	Up, promisc       bool
	AllMulti          bool
	TxQueue           int // packets

	Addrs []netip.Prefix // from [Kernel.Links]

	hairpin, isolated, noLinkLocal bool
	master, peerIndex              int
	group                          uint32
	loopback                       bool
}

// Promisc reports whether the link takes up every frame.
func (l LinkInfo) Promisc() bool { return l.promisc }

// PortOf reports whether the link is a port of a bridge.
func (l LinkInfo) PortOf(bridge LinkInfo) bool { return l.master == bridge.Index }

// ours reports whether Berth made the link.
func (l LinkInfo) ours() bool {
	return strings.HasPrefix(l.Alias, plan.AliasPrefix) || l.Alias == "" && l.group == unfinished
}

func parseLink(m []byte) (l LinkInfo, err error) {
	msg := nl.DeserializeIfInfomsg(m)
	l.Index, l.Up = int(msg.Index), msg.Flags&unix.IFF_UP != 0
	l.promisc = msg.Flags&unix.IFF_PROMISC != 0
	l.AllMulti = msg.Flags&unix.IFF_ALLMULTI != 0
	l.loopback = msg.Flags&unix.IFF_LOOPBACK != 0
	attrs, err := nl.ParseRouteAttr(m[msg.Len():])
	if err != nil {
		return l, err
	}
	for _, a := range attrs {
		switch a.Attr.Type & nl.NLA_TYPE_MASK {
		case unix.IFLA_IFNAME:
			l.Name = text(a.Value)
		case unix.IFLA_IFALIAS:
			l.Alias = text(a.Value)
		case unix.IFLA_MTU:
			l.MTU = int(number(a.Value))
		case unix.IFLA_ADDRESS:
			if len(a.Value) == 6 {
				l.MAC = berth.MAC(a.Value)
			}
		case unix.IFLA_TXQLEN:
			l.TxQueue = int(number(a.Value))
		case unix.IFLA_MASTER:
			l.master = int(number(a.Value))
		case unix.IFLA_LINK:
			l.peerIndex = int(number(a.Value))
		case unix.IFLA_GROUP:
			l.group = number(a.Value)
		case unix.IFLA_LINKINFO:
			err = l.parseInfo(a.Value)
		case unix.IFLA_AF_SPEC:
			err = l.parseFamilies(a.Value)
		}
		if err != nil {
			return l, err
		}
	}
	return l, nil
}

func (l *LinkInfo) parseInfo(b []byte) error {
	attrs, err := nl.ParseRouteAttr(b)
	if err != nil {
		return err
	}
	for _, a := range attrs {
		switch a.Attr.Type & nl.NLA_TYPE_MASK {
		case nl.IFLA_INFO_KIND:
			l.Kind = text(a.Value)
		case nl.IFLA_INFO_SLAVE_DATA:
			port, err := nl.ParseRouteAttr(a.Value)
			if err != nil {
				return err
			}
			for _, o := range port {
				switch o.Attr.Type & nl.NLA_TYPE_MASK {
				case brportMode:
					l.hairpin = o.Value[0] == 1
				case brportIsolated:
					l.isolated = o.Value[0] == 1
				}
			}
		}
	}
	return nil
}

func (l *LinkInfo) parseFamilies(b []byte) error {
	families, err := nl.ParseRouteAttr(b)
	if err != nil {
		return err
	}
	for _, f := range families {
		if f.Attr.Type&nl.NLA_TYPE_MASK != unix.AF_INET6 {
			continue
		}
		attrs, err := nl.ParseRouteAttr(f.Value)
		if err != nil {
			return err
		}
		for _, a := range attrs {
			if a.Attr.Type&nl.NLA_TYPE_MASK == inet6GenMode {
				l.noLinkLocal = a.Value[0] == genModeNone
			}
		}
	}
	return nil
}

func text(b []byte) string { return strings.TrimRight(string(b), "\x00") }

func number(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }

package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"berth"
	"berth/internal/plan"
)

// Attributes that the netlink library does not name (if_link.h).
const (
	brportMode     = 4  // IFLA_BRPORT_MODE: hairpin
	brportIsolated = 33 // IFLA_BRPORT_ISOLATED
	inet6GenMode   = 8  // IFLA_INET6_ADDR_GEN_MODE
	genModeNone    = 1
	vethInfoPeer   = 1
	skipStats      = 1 << 3 // RTEXT_FILTER_SKIP_STATS
)

// putLink makes a link or brings the one that is there to shape.
func (s *session) putLink(p *place, step plan.PutLink) error {
	have, err := p.link(step.Key.Name)
	if gone(err) {
		if step.Link.Kind == plan.VethLink && step.Inside.Kind == "" {
			return fmt.Errorf("one end of a pair is not there: %w", berth.ErrDrifted)
		}
		return s.makeLink(p, step)
	}
	if err != nil {
		return err
	}
	if !strings.HasPrefix(have.Alias, plan.AliasPrefix) && have.Alias != step.Link.Alias {
		return fmt.Errorf("there is a link of that name that is not Berth's: %w", berth.ErrExists)
	}
	if have.Alias != step.Link.Alias || have.Kind != string(step.Link.Kind) || !s.wired(p, step, have) {
		if err := p.deleteLink(have.Index); err != nil && !gone(err) {
			return err
		}
		delete(p.index, step.Key.Name)
		return s.makeLink(p, step)
	}
	p.index[have.Name] = have.Index
	return s.shape(p, step, have)
}

// wired reports whether the other end of a veth stands where it should.
func (s *session) wired(p *place, step plan.PutLink, have LinkInfo) bool {
	if step.Link.Kind != plan.VethLink || step.Inside.Kind == "" {
		return true
	}
	far, err := s.place(step.Link.Peer.Place)
	if err != nil {
		return false
	}
	other, err := far.link(step.Link.Peer.Name)
	return err == nil && other.Alias == step.Inside.Alias && other.Index == have.peerIndex && other.peerIndex == have.Index
}

// makeLink makes a link in its final place.
func (s *session) makeLink(p *place, step plan.PutLink) error {
	l := step.Link
	req := p.request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	// An index of our own, so that both ends of a pair never have the same: the
	// kernel then takes the pair for no pair (linkwatch_urgent_event), notices
	// its carrier up to a second late, and IPv6 loses its first packets.
	msg.Index = 1<<24 + rand.Int32N(1<<30)
	if l.Up {
		msg.Flags, msg.Change = unix.IFF_UP, unix.IFF_UP
	}
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(step.Key.Name)))
	addMTU(req, l.MTU)
	addMAC(req, l.MAC)
	if l.Master != "" {
		master, err := p.indexOf(l.Master)
		if err != nil {
			return fmt.Errorf("bridge %s: %w", l.Master, err)
		}
		req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(master))))
	}
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated(string(l.Kind)))
	var far *place
	if l.Kind == plan.VethLink {
		var err error
		if far, err = s.place(l.Peer.Place); err != nil {
			return fmt.Errorf("the other end%s: its namespace is gone: %w", in(l.Peer.Place), berth.ErrNotFound)
		}
		addPeer(info, l.Peer.Name, step.Inside, far)
	}
	req.AddData(info)
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("there is a link of that name, or of the other end's (%s%s): %w", l.Peer.Name, in(l.Peer.Place), berth.ErrExists)
		}
		return err
	}
	p.index[step.Key.Name] = int(msg.Index)
	if far != nil {
		delete(far.index, l.Peer.Name)
		if err := far.setAlias(l.Peer.Name, step.Inside.Alias); err != nil {
			return err
		}
	}
	return p.decorate(int(msg.Index), l)
}

func addPeer(info *nl.RtAttr, name string, l plan.Link, where *place) {
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(vethInfoPeer, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name))
	if l.MTU > 0 {
		peer.AddRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(l.MTU)))
	}
	if l.MAC != (berth.MAC{}) {
		peer.AddRtAttr(unix.IFLA_ADDRESS, l.MAC[:])
	}
	// The peer cannot be created up: veth returns ENOTCONN until both exist.
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(where.ns.FD())))
}

func addMTU(req *nl.NetlinkRequest, mtu int) {
	if mtu > 0 {
		req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu))))
	}
}

func addMAC(req *nl.NetlinkRequest, mac berth.MAC) {
	if mac != (berth.MAC{}) {
		req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, mac[:]))
	}
}

// change makes a request that changes a link.
func (p *place) change(index int) *nl.NetlinkRequest {
	req := p.request(unix.RTM_NEWLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	return req
}

// decorate sets what creation silently ignores: ifalias, hairpin, isolation
// (and, refused at creation, addrgenmode), in one message.
func (p *place) decorate(index int, l plan.Link) error {
	req := p.change(index)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(l.Alias)))
	if l.Master != "" {
		info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
		info.AddRtAttr(nl.IFLA_INFO_SLAVE_KIND, nl.NonZeroTerminated("bridge"))
		data := info.AddRtAttr(nl.IFLA_INFO_SLAVE_DATA, nil)
		data.AddRtAttr(brportMode, flag(l.Hairpin))
		data.AddRtAttr(brportIsolated, flag(l.Isolated))
		req.AddData(info)
	}
	if l.NoLinkLocal {
		spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
		spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(inet6GenMode, []byte{genModeNone})
		req.AddData(spec)
	}
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if l.NoLinkLocal && errors.Is(err, unix.EAFNOSUPPORT) { // IPv6 is off
		l.NoLinkLocal = false
		return p.decorate(index, l)
	}
	return err
}

func flag(on bool) []byte {
	if on {
		return []byte{1}
	}
	return []byte{0}
}

func (p *place) setAlias(name, alias string) error {
	req := p.change(0)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(alias)))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// shape brings a link that stands to shape.
func (s *session) shape(p *place, step plan.PutLink, have LinkInfo) error {
	l := step.Link
	req := p.change(have.Index)
	if l.MTU != have.MTU {
		addMTU(req, l.MTU)
	}
	if l.MAC != have.MAC {
		addMAC(req, l.MAC)
	}
	if l.Kind == plan.VethLink {
		master := 0
		if l.Master != "" {
			var err error
			if master, err = p.indexOf(l.Master); err != nil {
				return fmt.Errorf("bridge %s: %w", l.Master, err)
			}
		}
		if master != have.master {
			req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(master))))
		}
	}
	if len(req.Data) > 1 {
		if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
			return err
		}
	}
	if err := p.decorate(have.Index, l); err != nil {
		return err
	}
	if l.Up && !have.Up {
		if err := p.up(step.Key.Name); err != nil {
			return err
		}
	}
	if step.Inside.Kind == "" {
		return nil
	}
	far, err := s.place(l.Peer.Place)
	if err != nil {
		return err
	}
	other, err := far.link(l.Peer.Name)
	if err != nil {
		return err
	}
	up := step.Inside
	up.Up = false // brought up when it has its addresses
	return s.shape(far, plan.PutLink{Key: l.Peer, Link: up}, other)
}

func (p *place) up(name string) error {
	req := p.request(unix.RTM_NEWLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Flags, msg.Change = unix.IFF_UP, unix.IFF_UP
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func (p *place) deleteLink(index int) error {
	req := p.request(unix.RTM_DELLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// dropLinks deletes links of ours. Many are put into a link group of their own
// and deleted at once: one by one each waits for a grace period of its own.
func (p *place) dropLinks(names []string) error {
	var ours []int
	for _, n := range names {
		delete(p.index, n)
		l, err := p.link(n)
		if gone(err) {
			continue
		}
		if err != nil {
			return err
		}
		if strings.HasPrefix(l.Alias, plan.AliasPrefix) {
			ours = append(ours, l.Index)
		}
	}
	switch len(ours) {
	case 0:
		return nil
	case 1:
		return ignoreGone(p.deleteLink(ours[0]))
	}
	return p.deleteGroup(ours)
}

func (p *place) deleteGroup(indexes []int) error {
	group := 1<<24 + rand.Uint32N(1<<30)
	members := map[int]bool{}
	for _, i := range indexes {
		req := p.change(i)
		req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
		if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
			if gone(err) {
				continue
			}
			return err
		}
		members[i] = true
	}
	all, err := p.links()
	if err != nil {
		return err
	}
	for _, l := range all {
		if l.group == group && !members[l.Index] {
			return fmt.Errorf("link %s is in group %d, which was to be Berth's own: %w", l.Name, group, berth.ErrDrifted)
		}
	}
	req := p.request(unix.RTM_DELLINK, 0)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
	_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	return ignoreGone(err)
}

func ignoreGone(err error) error {
	if gone(err) {
		return nil
	}
	return err
}

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
	Up                bool

	Addrs []netip.Prefix // from [Kernel.Links]

	hairpin, isolated, noLinkLocal bool
	master, peerIndex              int
	group                          uint32
	loopback                       bool
}

func parseLink(m []byte) (l LinkInfo, err error) {
	msg := nl.DeserializeIfInfomsg(m)
	l.Index, l.Up = int(msg.Index), msg.Flags&unix.IFF_UP != 0
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

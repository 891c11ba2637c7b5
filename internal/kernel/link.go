package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"berth"
	"berth/internal/crash"
	"berth/internal/plan"
)

// Attributes that the netlink library does not name (if_link.h).
const (
	brportMode     = 4  // IFLA_BRPORT_MODE: hairpin
	brportIsolated = 33 // IFLA_BRPORT_ISOLATED
	inet6GenMode   = 8  // IFLA_INET6_ADDR_GEN_MODE
	inetConf       = 1  // IFLA_INET_CONF
	genModeNone    = 1
	vethInfoPeer   = 1
	skipStats      = 1 << 3 // RTEXT_FILTER_SKIP_STATS
)

// putLink makes a link or brings the one that is there to shape.
func (s session) putLink(p *place, step plan.PutLink) error {
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
	if !have.ours() {
		return fmt.Errorf("there is a link of that name that is not Berth's: %w", berth.ErrExists)
	}
	stands := have.Alias == step.Link.Alias && have.Kind == string(step.Link.Kind)
	if stands {
		if stands, err = s.wired(step, have); err != nil {
			return err
		}
	}
	if stands {
		p.index[have.Name] = have.Index
		return s.shape(p, step, have)
	}
	if err := p.deleteLinks([]int{have.Index}, linkAt(have.Index)); err != nil && !gone(err) {
		return err
	}
	delete(p.index, step.Key.Name)
	return s.makeLink(p, step)
}

// wired reports whether the other end of a veth stands where it should.
func (s session) wired(step plan.PutLink, have LinkInfo) (bool, error) {
	if step.Link.Kind != plan.VethLink || step.Inside.Kind == "" {
		return true, nil
	}
	far, err := s.farEnd(step)
	if err != nil {
		return false, err
	}
	other, err := far.link(step.Link.Peer.Name)
	if gone(err) {
		return false, nil
	}
	return other.Alias == step.Inside.Alias && other.Index == have.peerIndex && other.peerIndex == have.Index, err
}

// farEnd is the place of a veth's other end.
func (s session) farEnd(step plan.PutLink) (*place, error) {
	far, err := s.place(step.Link.Peer.Place)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("its namespace is gone: %w", berth.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("the other end%s: %w", in(step.Link.Peer.Place), err)
	}
	return far, nil
}

// makeLink makes a link in its final place and says whose it is.
func (s session) makeLink(p *place, step plan.PutLink) error {
	far, err := s.create(p, step)
	if errors.Is(err, unix.EEXIST) && far != nil {
		// An end of another pair of ours may be in the way; its pair goes.
		if other, look := far.link(step.Link.Peer.Name); look == nil && other.ours() {
			if err := far.deleteLinks([]int{other.Index}, linkAt(other.Index)); err != nil && !gone(err) {
				return err
			}
			far, err = s.create(p, step)
		}
	}
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("there is a link of that name, or of its other end's (%s%s), that is not Berth's: %w",
			step.Link.Peer.Name, in(step.Link.Peer.Place), berth.ErrExists)
	}
	if err != nil {
		return err
	}
	crash.Point("kernel.unfinished link")
	if far != nil {
		s.made[step.Link.Peer] = step
		if err := far.finish(step.Link.Peer.Name, step.Inside); err != nil {
			return err
		}
		crash.Point("kernel.unfinished host end")
	}
	return p.finish(step.Key.Name, step.Link)
}

// unfinished is the link group of a link that has no ifalias yet: creation
// ignores an ifalias, but not a group. So a link that a crash left between its
// two messages is known for ours.
const unfinished = 0x62746c

// create makes a link, or both ends of a veth, in one message, and remembers
// their indexes.
func (s session) create(p *place, step plan.PutLink) (far *place, err error) {
	l := step.Link
	req := p.request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	// Indexes of our own, so that both ends of a pair never have the same: the
	// kernel then takes the pair for no pair (linkwatch_urgent_event), notices
	// its carrier up to a second late, and IPv6 loses its first packets.
	msg.Index = 1<<24 + 2*rand.Int32N(1<<29)
	if l.Up {
		msg.Flags, msg.Change = unix.IFF_UP, unix.IFF_UP
	}
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(step.Key.Name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(unfinished)))
	if l.Kind != plan.BridgeLink {
		addMTU(req, l.MTU)
	}
	addMAC(req, l.MAC)
	if l.Master != "" {
		master, err := p.indexOf(l.Master)
		if err != nil {
			return nil, fmt.Errorf("bridge %s: %w", l.Master, err)
		}
		req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(master))))
	}
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated(string(l.Kind)))
	if l.Kind == plan.VethLink {
		if far, err = s.farEnd(step); err != nil {
			return nil, err
		}
		addPeer(info, l.Peer.Name, msg.Index+1, step.Inside, far)
	}
	req.AddData(info)
	if _, err = req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return far, err
	}
	p.index[step.Key.Name] = int(msg.Index)
	if far != nil {
		far.index[l.Peer.Name] = int(msg.Index + 1)
	}
	return far, nil
}

func addPeer(info *nl.RtAttr, name string, index int32, l plan.Link, where *place) {
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(vethInfoPeer, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC).Index = index
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name))
	peer.AddRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(unfinished))
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

// finish sets what creation silently ignores (ifalias, hairpin, isolation) or
// refuses (addrgenmode), in one message.
func (p *place) finish(name string, l plan.Link) error {
	req := p.change(p.index[name])
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(0)))
	if l.Kind == plan.BridgeLink {
		// An MTU that a bridge is born with it gives up with its last port
		// (br_mtu_auto_adjust); one that is set it keeps.
		addMTU(req, l.MTU)
	}
	return p.decorate(req, l)
}

// decorate adds to a change what creation does not set, and makes it.
func (p *place) decorate(req *nl.NetlinkRequest, l plan.Link) error {
	req.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(l.Alias)))
	if l.Kind == plan.BridgeLink {
		msg := req.Data[0].(*nl.IfInfomsg)
		if msg.Change |= unix.IFF_PROMISC; l.Promisc {
			msg.Flags |= unix.IFF_PROMISC
		}
	}
	if l.Master != "" {
		info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
		info.AddRtAttr(nl.IFLA_INFO_SLAVE_KIND, nl.NonZeroTerminated("bridge"))
		data := info.AddRtAttr(nl.IFLA_INFO_SLAVE_DATA, nil)
		data.AddRtAttr(brportMode, flag(l.Hairpin))
		data.AddRtAttr(brportIsolated, flag(l.Isolated))
		req.AddData(info)
	}
	plain := len(req.Data)
	if l.NoLinkLocal {
		spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
		spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(inet6GenMode, []byte{genModeNone})
		req.AddData(spec)
	}
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if l.NoLinkLocal && errors.Is(err, unix.EAFNOSUPPORT) { // IPv6 is off
		req.Data = req.Data[:plain]
		_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	}
	return err
}

func flag(on bool) []byte {
	if on {
		return []byte{1}
	}
	return []byte{0}
}

// shape brings a link that stands to shape.
func (s session) shape(p *place, step plan.PutLink, have LinkInfo) error {
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
	if err := p.decorate(p.change(have.Index), l); err != nil {
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

// upLink brings up a link and, if it is the inside end of a pair that was just
// made, sees to it that the pair carries packets when the step is done: by looks,
// whose answers nobody needs.
//
// A bridge forwards to a port when a worker of the kernel has noticed its
// carrier. On a busy host that is late, and a first packet that is lost is sent
// again after a second: 6 of 20 first connections. A look at one link does the
// worker's work at once: 0 of 20 (Linux 6.18; a kernel that does not is no
// worse off).
func (s session) upLink(p *place, name string) error {
	if err := p.up(name); err != nil {
		return err
	}
	pair, ok := s.made[plan.LinkKey{Place: p.name, Name: name}]
	other, err := s.place(pair.Key.Place)
	if !ok || err != nil {
		return nil // the link is up
	}
	_, _ = p.link(name)
	_, _ = other.link(pair.Key.Name)
	if pair.Link.Master != "" {
		_, _ = other.link(pair.Link.Master)
	}
	return nil
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

// deleteLinks sends what deletes links and returns when they are gone: no name
// and no packet finds them. The kernel answers 10 to 50 ms later, when nobody holds
// their memory any more (netdev_run_todo waits for it without any lock), and only
// the thread that asked has to stay for that.
func (p *place) deleteLinks(indexes []int, what ...nl.NetlinkRequestData) error {
	asker, err := enter(p.name, p.ns)
	if err != nil {
		return err
	}
	req := asker.request(unix.RTM_DELLINK, 0)
	for _, w := range what {
		req.AddData(w)
	}
	answer := make(chan error, 1)
	go func() {
		defer asker.close()
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		answer <- ignoreGone(err)
	}()
	for {
		// The kernel keeps this look waiting while it takes them apart.
		indexes = slices.DeleteFunc(indexes, func(i int) bool { return gone(p.look(i)) })
		if len(indexes) == 0 {
			return nil
		}
		select {
		case err := <-answer:
			return err
		case <-time.After(200 * time.Microsecond):
		}
	}
}

// look asks for a link.
func (p *place) look(index int) error {
	req := p.request(unix.RTM_GETLINK, 0)
	req.Flags &^= unix.NLM_F_ACK
	req.AddData(linkAt(index))
	req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func linkAt(index int) *nl.IfInfomsg {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	return msg
}

// dropLinks deletes links of ours, or others' too. Many are put into a link group of their own
// and deleted at once: one by one each waits for a grace period of its own.
func (p *place) dropLinks(names []string, others bool) error {
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
		if others || l.ours() {
			ours = append(ours, l.Index)
		}
	}
	switch len(ours) {
	case 0:
		return nil
	case 1:
		return p.deleteLinks(ours, linkAt(ours[0]))
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
	return p.deleteLinks(indexes, nl.NewIfInfomsg(unix.AF_UNSPEC), nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
}

func ignoreGone(err error) error {
	if gone(err) {
		return nil
	}
	return err
}

package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"berth/internal/netns"
)

// The floor is what a bare netlink program needs for the same kernel objects:
// a veth pair made in its final place, its alias and bridge-port flags, one
// IPv4 and one IPv6 address, both ends up, the default routes, and one
// transaction that puts an element into each of two maps. It checks nothing,
// writes nothing down and closes nothing to anybody.
type floor struct {
	host   *netns.NS
	socket map[int]*nl.SocketHandle
	nft    *nftables.Conn
	maps   [2]*nftables.Set
	bridge int
	table  *nftables.Table
}

func newFloor(host *netns.NS) *floor {
	f := &floor{host: host}
	check(host.Do(func() error {
		s := must(nl.GetNetlinkSocketAt(vnetns.None(), vnetns.None(), unix.NETLINK_ROUTE))
		f.socket = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}
		f.nft = must(nftables.New(nftables.AsLasting()))
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "floor0", MTU: 1500}}
		check(netlink.LinkAdd(br))
		check(netlink.LinkSetUp(br))
		f.bridge = must(netlink.LinkByName("floor0")).Attrs().Index
		check(netlink.AddrAdd(must(netlink.LinkByName("floor0")), must(netlink.ParseAddr("10.200.0.1/16"))))
		return nil
	}))
	f.table = f.nft.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "floor"})
	for i, addr := range []nftables.SetDatatype{nftables.TypeIPAddr, nftables.TypeIP6Addr} {
		f.maps[i] = &nftables.Set{Table: f.table, ID: uint32(i + 1), Name: fmt.Sprintf("m%d", i), IsMap: true,
			KeyType:  nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService),
			DataType: nftables.MustConcatSetType(addr, nftables.TypeInetService)}
		check(f.nft.AddSet(f.maps[i], nil))
	}
	check(f.nft.Flush())
	f.maps[0].ID, f.maps[1].ID = 0, 0
	return f
}

// attach makes the endpoint i; its link is in a group, if that is not 0.
func (f *floor) attach(i int, sandbox *netns.NS, group uint32) {
	name := fmt.Sprintf("fl%d", i)
	index := 1<<24 + rand.Int32N(1<<30)
	f.create(name, "eth0", index, sandbox, group)
	f.decorate(index)
	a4 := netip.AddrFrom4([4]byte{10, 200, byte((i + 2) >> 8), byte(i + 2)})
	a6b := netip.MustParseAddr("fd99::").As16()
	binary.BigEndian.PutUint16(a6b[14:], uint16(i+2))
	a6 := netip.AddrFrom16(a6b)
	var h *netlink.Handle
	check(sandbox.Do(func() (err error) { h, err = netlink.NewHandle(unix.NETLINK_ROUTE); return err }))
	defer h.Close()
	l := must(h.LinkByName("eth0"))
	check(h.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: a4.AsSlice(), Mask: net.CIDRMask(16, 32)}}))
	check(h.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: a6.AsSlice(), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD}))
	check(h.LinkSetUp(l))
	check(h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.IPv4(10, 200, 0, 1)}))
	check(h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP("fd99::1")}))
	f.publish(i, a4, a6)
}

// fill makes one more port of the bridge, that is there and nothing else. Their
// far ends share a namespace, so that the machine has as many as it has
// sandboxes of Berth.
func (f *floor) fill(i int, far *netns.NS) {
	index := 1<<24 + rand.Int32N(1<<30)
	name := fmt.Sprintf("full%d", i)
	f.create(name, name, index, far, 0)
	f.decorate(index)
	check(far.Do(func() error { return netlink.LinkSetUp(must(netlink.LinkByName(name))) }))
}

func (f *floor) publish(i int, a4, a6 netip.Addr) {
	key := make([]byte, 8)
	key[0] = unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(key[4:], uint16(10000+i))
	port := []byte{0, 80, 0, 0}
	check(f.nft.SetAddElements(f.maps[0], []nftables.SetElement{{Key: key, Val: append(a4.AsSlice(), port...)}}))
	check(f.nft.SetAddElements(f.maps[1], []nftables.SetElement{{Key: key, Val: append(a6.AsSlice(), port...)}}))
	check(f.nft.Flush())
}

func (f *floor) create(name, far string, index int32, sandbox *netns.NS, group uint32) {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.Sockets = f.socket
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Flags, msg.Change = index, unix.IFF_UP, unix.IFF_UP
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(1500)))
	req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(f.bridge))))
	if group != 0 {
		req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
	}
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(1, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(far))
	peer.AddRtAttr(unix.IFLA_MTU, nl.Uint32Attr(1500))
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(sandbox.FD())))
	req.AddData(info)
	must(req.Execute(unix.NETLINK_ROUTE, 0))
}

func (f *floor) decorate(index int32) {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	req.Sockets = f.socket
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = index
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte("floor")))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_SLAVE_KIND, nl.NonZeroTerminated("bridge"))
	info.AddRtAttr(nl.IFLA_INFO_SLAVE_DATA, nil).AddRtAttr(4, []byte{1})
	req.AddData(info)
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(8, []byte{1})
	req.AddData(spec)
	must(req.Execute(unix.NETLINK_ROUTE, 0))
}

// detach is the kernel's deletion of one veth.
func (f *floor) detach(i int) {
	var h *netlink.Handle
	check(f.host.Do(func() (err error) { h, err = netlink.NewHandle(unix.NETLINK_ROUTE); return err }))
	defer h.Close()
	l := must(h.LinkByName(fmt.Sprintf("fl%d", i)))
	check(h.LinkDel(l))
}

// detachGroup is the kernel's deletion of a group of links.
func (f *floor) detachGroup(group uint32) {
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.Sockets = f.socket
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
	must(req.Execute(unix.NETLINK_ROUTE, 0))
}

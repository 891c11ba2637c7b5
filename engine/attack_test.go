package engine_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"berth"
	"berth/engine"
	"berth/internal/netns"
	"berth/internal/nettest"
)

// A fort is a host with everything that is attacked: a published web server on
// network front, an attacker on network back, a prisoner on the internal
// network vault, a sandbox that is on front and back, and a LAN outside.
type fort struct {
	*world
	lan                        *nettest.Host
	front, back, vault         berth.Network
	web, peer, attacker, caged berth.Endpoint
	mid                        berth.Endpoint // of the two-legged sandbox, on back
	webNS, peerNS, attackerNS  *netns.NS
	cagedNS, midNS             *netns.NS
	ear                        *ear
}

func newFort(t *testing.T) *fort {
	f := &fort{world: newWorld(t)}
	f.lan = f.host.LAN(t)
	f.front = f.network(engine.NetworkSpec{Name: "front", IPv6: true})
	f.back = f.network(engine.NetworkSpec{Name: "back", IPv6: true})
	f.vault = f.network(engine.NetworkSpec{Name: "vault", IPv6: true, Internal: true})
	add := func(n string) (string, berth.Endpoint, *netns.NS) {
		ref, ns := f.netns()
		return ref, f.connect(n, ref, engine.ConnectOptions{}), ns
	}
	var web, mid string
	web, f.web, f.webNS = add("front")
	_, f.peer, f.peerNS = add("front")
	_, f.attacker, f.attackerNS = add("back")
	_, f.caged, f.cagedNS = add("vault")
	mid, f.mid, f.midNS = add("back")
	f.connect("front", mid, engine.ConnectOptions{})
	f.publish(web, "8888:80/udp", "8888:80/tcp", "127.0.0.1:9999:81/udp")
	f.ear = newEar(t, f.webNS)
	return f
}

// mac is the address of a link in a namespace.
func mac(t *testing.T, place nettest.Place, dev string) net.HardwareAddr {
	t.Helper()
	var hw net.HardwareAddr
	err := place.Do(func() error {
		i, err := net.InterfaceByName(dev)
		if err == nil {
			hw = i.HardwareAddr
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return hw
}

// A trick is one packet, or some, that must not arrive.
type trick struct {
	name    string
	packets func(mark []byte) [][]byte
}

var (
	lan4, lan6   = netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")
	host4, host6 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	loop4        = netip.MustParseAddr("127.0.0.1")
)

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// toWeb are the ways to send to the web server's own address, from whoever the
// attacker is.
func (f *fort) toWeb(own4, own6 netip.Addr) []trick {
	one := func(src, dst netip.AddrPort) func([]byte) [][]byte {
		return func(mark []byte) [][]byte { return [][]byte{udp(src, dst, mark)} }
	}
	web4, web6 := f.web.Addr4(), f.web.Addr6()
	return []trick{
		{"direct", one(at(own4, 1000), at(web4, 80))},
		{"direct, IPv6", one(at(own6, 1000), at(web6, 80))},
		{"as a neighbour of the web server", one(at(f.peer.Addr4(), 1000), at(web4, 80))},
		{"as a neighbour, IPv6", one(at(f.peer.Addr6(), 1000), at(web6, 80))},
		{"as the web server's gateway", one(at(f.front.Subnets[0].Gateway, 1000), at(web4, 80))},
		{"as the gateway, IPv6", one(at(f.front.Subnets[1].Gateway, 1000), at(web6, 80))},
		{"as the host", one(at(host4, 1000), at(web4, 80))},
		{"as the host, IPv6", one(at(host6, 1000), at(web6, 80))},
		{"in fragments", func(mark []byte) [][]byte {
			return fragments(udp(at(own4, 1000), at(web4, 80), append(mark[:len(mark):len(mark)], make([]byte, 64)...)))
		}},
		{"to a port published on 127.0.0.1", one(at(own4, 1000), at(loop4, 9999))},
		{"as 127.0.0.1", one(at(loop4, 1000), at(web4, 80))},
		{"as 127.0.0.1 to a published port", one(at(loop4, 1000), at(host4, 8888))},
		{"as a neighbour to a published port", one(at(f.peer.Addr4(), 1000), at(host4, 8888))},
	}
}

var serial int

// try fires a trick and reports whether the web server heard it. The fence is
// a packet that must arrive: behind it, what did not arrive never will.
func (f *fort) try(g *gun, to net.HardwareAddr, own netip.Addr, tr trick) bool {
	f.t.Helper()
	serial++
	// Eight bytes, so that each is whole even in fragments of eight.
	mark, fence := fmt.Appendf(nil, "m%07d", serial), fmt.Appendf(nil, "f%07d", serial)
	g.fire(to, tr.packets(mark)...)
	g.fire(to, udp(at(own, uint16(2000+serial%60000)), at(host4, 8888), fence))
	return f.ear.hears(mark, fence, 2*time.Second)
}

func TestAttacks(t *testing.T) {
	for _, brnf := range []bool{false, true} {
		t.Run(fmt.Sprintf("br_netfilter=%v", brnf), func(t *testing.T) {
			f := newFort(t)
			f.host.BrNetfilter(t, brnf)
			f.lanAttacks()
			f.sandboxAttacks()
			f.injections()
			f.survivors()
			f.untracked()
			f.cagedAttacks()
			f.advertisements()
			f.twoLegs(brnf)
			f.clean()
		})
	}
}

// battle tries tricks against the fort as it is, and each again as a control
// with the table gone and the way between the networks open: what could not
// succeed even then would prove nothing.
func (f *fort) battle(who string, place nettest.Place, dev string, to net.HardwareAddr, own4, own6 netip.Addr) {
	f.t.Helper()
	g := newGun(f.t, place, dev)
	tricks := f.toWeb(own4, own6)
	for _, tr := range tricks {
		if f.try(g, to, own4, tr) {
			f.t.Errorf("%s reached the web server: %s", who, tr.name)
		}
	}
	f.opened(func() {
		for _, tr := range tricks {
			if strings.Contains(tr.name, "as the") && strings.Contains(tr.name, "IPv6") || strings.Contains(tr.name, "as 127") {
				continue // the kernel itself refuses its own addresses as a source
			}
			if !f.try(g, to, own4, tr) {
				f.t.Errorf("control: %s did not reach the web server of an open host: %s", who, tr.name)
			}
		}
	})
	f.host.Try("conntrack", "-F")
	f.heal()
}

// opened does something while the table is gone and the way between the
// networks open.
func (f *fort) opened(do func()) {
	f.t.Helper()
	f.host.Run(f.t, "nft", "delete", "table", "inet", "berth")
	f.host.Run(f.t, "sh", "-c", "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done; for f in /proc/sys/net/ipv4/conf/*/accept_local; do echo 1 >$f; done; for f in /proc/sys/net/ipv4/conf/*/route_localnet; do echo 1 >$f; done")
	// The bare rules that the table has: without them nothing leads to a
	// published port or is answered from outside, and the tricks with one could
	// not succeed.
	f.host.Run(f.t, "nft", fmt.Sprintf(`table inet open {
		chain pre { type nat hook prerouting priority -100; udp dport 8888 dnat ip to %s:80; udp dport 8888 dnat ip6 to [%s]:80; udp dport 9999 dnat ip to %[1]s:81; }
		chain post { type nat hook postrouting priority 100; oifname "uplink0" masquerade; }
	}`, f.web.Addr4(), f.web.Addr6()))
	do()
	f.host.Run(f.t, "nft", "delete", "table", "inet", "open")
	f.host.Run(f.t, "sh", "-c", "for f in /proc/sys/net/ipv4/conf/*/accept_local; do echo 0 >$f; done; for f in /proc/sys/net/ipv4/conf/*/route_localnet; do echo 0 >$f; done")
}

func (f *fort) heal() {
	f.t.Helper()
	if _, err := f.Reconcile(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fort) lanAttacks() {
	f.t.Helper()
	f.battle("the LAN", f.lan, "lan0", mac(f.t, f.host, "uplink0"), lan4, lan6)
}

func (f *fort) sandboxAttacks() {
	f.t.Helper()
	f.battle("another network", f.attackerNS, f.attacker.Interface, mac(f.t, f.host, f.back.Bridge), f.attacker.Addr4(), f.attacker.Addr6())
}

// asks reports whether a server answers from a namespace.
func (f *fort) asks(from nettest.Place, proto string, to netip.AddrPort) bool {
	f.t.Helper()
	_, err := nettest.Dial(f.t, from, proto, to, 700*time.Millisecond)
	return err == nil
}

// cagedAttacks are those of an internal network: nothing but its gateway's own
// address may answer.
func (f *fort) cagedAttacks() {
	f.t.Helper()
	any4, any6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	for _, proto := range []string{"tcp", "udp"} {
		for _, s := range []struct {
			place nettest.Place
			port  uint16
		}{{f.lan, 7002}, {f.webNS, 80}} {
			nettest.Serve(f.t, s.place, proto, at(any4, s.port), "here")
			nettest.Serve(f.t, s.place, proto, at(any6, s.port), "here")
		}
		gw4, gw6 := f.vault.Subnets[0].Gateway, f.vault.Subnets[1].Gateway
		// One server for each address: a datagram's answer from "any" leaves with
		// the address of the way back.
		for _, a := range []netip.Addr{host4, host6, gw4, gw6, f.front.Subnets[0].Gateway, f.front.Subnets[1].Gateway} {
			nettest.Serve(f.t, f.host, proto, at(a, 7001), "here")
		}
		for _, to := range []netip.AddrPort{
			at(lan4, 7002), at(lan6, 7002), at(host4, 7001), at(host6, 7001), at(f.web.Addr4(), 80), at(f.web.Addr6(), 80),
			at(host4, 8888), at(host6, 8888), at(gw4, 8888), at(gw6, 8888), at(f.front.Subnets[0].Gateway, 7001),
		} {
			// It has no default route; a prisoner makes one.
			f.nsRun(f.cagedNS, "ip", "route", "replace", "default", "via", gw4.String())
			f.nsRun(f.cagedNS, "ip", "-6", "route", "replace", "default", "via", gw6.String())
			if f.asks(f.cagedNS, proto, to) {
				f.t.Errorf("the internal network reached %s/%s", to, proto)
			}
		}
		for _, to := range []netip.AddrPort{at(gw4, 7001), at(gw6, 7001)} {
			if !f.asks(f.cagedNS, proto, to) {
				f.t.Errorf("the internal network does not reach its gateway's %s/%s", to, proto)
			}
		}
		// The controls: from a network that is not internal the same answers.
		for _, to := range []netip.AddrPort{at(lan4, 7002), at(host4, 7001), at(host6, 7001), at(host4, 8888)} {
			if !f.asks(f.attackerNS, proto, to) {
				f.t.Errorf("control: %s/%s does not answer another network", to, proto)
			}
		}
	}
	f.nsRun(f.cagedNS, "ip", "route", "del", "default")
	f.nsRun(f.cagedNS, "ip", "-6", "route", "del", "default")
}

// nsRun runs a command in a namespace that is no host.
func (f *fort) nsRun(ns *netns.NS, args ...string) string {
	f.t.Helper()
	return f.host.Run(f.t, "nsenter", append([]string{fmt.Sprintf("--net=/proc/%d/fd/%d", os.Getpid(), ns.FD())}, args...)...)
}

// advertisements: a sandbox that plays the router is believed by nobody.
func (f *fort) advertisements() {
	f.t.Helper()
	g := newGun(f.t, f.peerNS, f.peer.Interface)
	src := netip.MustParseAddr("fe80::bad")
	ra := advertisement(src, g.own, netip.MustParseAddr("2001:db8:bad::"))
	all := net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
	before := f.host.Run(f.t, "ip", "-6", "route")
	believed := func() string {
		for range 3 {
			g.fire(all, ra)
		}
		// The answer to a connection comes after what was sent before it.
		f.asks(f.peerNS, "tcp", at(f.web.Addr6(), 80))
		f.asks(f.peerNS, "tcp", at(f.front.Subnets[1].Gateway, 7001))
		return f.nsRun(f.webNS, "ip", "-6", "route") + f.host.Run(f.t, "ip", "-6", "route")
	}
	if out := believed(); strings.Contains(out, "bad") {
		f.t.Errorf("a sandbox's router advertisement was believed:\n%s\nbefore:\n%s", out, before)
	}
	f.nsRun(f.webNS, "sysctl", "-qw", "net/ipv6/conf/"+f.web.Interface+"/accept_ra=2")
	if out := believed(); !strings.Contains(out, "bad") {
		f.t.Errorf("control: a sandbox that wants to believe did not:\n%s", out)
	}
	f.nsRun(f.webNS, "sysctl", "-qw", "net/ipv6/conf/"+f.web.Interface+"/accept_ra=0")
	f.nsRun(f.webNS, "ip", "-6", "route", "flush", "proto", "ra")
	f.nsRun(f.webNS, "ip", "-6", "addr", "flush", "dev", f.web.Interface, "dynamic")
}

// twoLegs: a sandbox on two networks is no router between them.
func (f *fort) twoLegs(brnf bool) {
	f.t.Helper()
	g := newGun(f.t, f.attackerNS, f.attacker.Interface)
	to := mac(f.t, f.midNS, f.mid.Interface)
	for v, tr := range f.toWeb(f.attacker.Addr4(), f.attacker.Addr6())[:2] {
		serial++
		mark := fmt.Appendf(nil, "m%07d", serial)
		g.fire(to, tr.packets(mark)...)
		if f.ear.hears(mark, nil, 500*time.Millisecond) {
			f.t.Errorf("a sandbox on two networks routed between them: %s", tr.name)
		}
		if brnf {
			continue // the host's own guard sees the packet too
		}
		conf := []string{"net/ipv4/conf/%s/forwarding", "net/ipv6/conf/%s/forwarding"}[v]
		devs := []string{"eth0", "eth1"}
		if v == 1 {
			devs = append(devs, "all") // ip6_forward looks at this one
		}
		for _, dev := range devs {
			f.nsRun(f.midNS, "sysctl", "-qw", fmt.Sprintf(conf, dev)+"=1")
		}
		g.fire(to, tr.packets(mark)...)
		if !f.ear.hears(mark, nil, 2*time.Second) {
			f.t.Errorf("control: a sandbox that routes did not: %s", tr.name)
		}
		for _, dev := range devs {
			f.nsRun(f.midNS, "sysctl", "-qw", fmt.Sprintf(conf, dev)+"=0")
		}
	}
}

// TestStrangersStayStrangers: where Berth switched forwarding on, the links
// that were there do not become routed into each other.
func TestStrangersStayStrangers(t *testing.T) {
	w := newWorld(t)
	lan := w.host.LAN(t)
	other := w.host.Netns(t, "other")
	w.host.Run(t, "sh", "-c", "ip link add up1 type veth peer name lan1 netns other && ip addr add 198.51.100.1/24 dev up1 && ip link set up1 up && ip -n other addr add 198.51.100.2/24 dev lan1 && ip -n other link set lan1 up && ip -n other route add default via 198.51.100.1")
	nettest.Serve(t, other, "tcp", at(netip.IPv4Unspecified(), 80), "here")
	ask := func() bool {
		_, err := nettest.Dial(t, lan, "tcp", netip.MustParseAddrPort("198.51.100.2:80"), 700*time.Millisecond)
		return err == nil
	}
	lan.Run(t, "ip", "route", "replace", "198.51.100.0/24", "via", "192.0.2.1")
	if ask() {
		t.Error("routed before there was any network")
	}
	w.network(engine.NetworkSpec{Name: "front"})
	if ask() {
		t.Error("the host became a router between links that were strangers")
	}
	w.host.Run(t, "nft", "flush", "set", "inet", "berth", "uplinks")
	if !ask() {
		t.Error("control: without the guard it would not have routed either")
	}
	if _, err := w.Reconcile(context.Background()); err != nil {
		t.Fatal(err)
	}
	if ask() {
		t.Error("the guard did not come back")
	}
}

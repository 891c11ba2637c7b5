package engine_test

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"berth/internal/nettest"
)

// A party can send whatever it likes and hears everything that it is sent.
type party struct {
	*gun
	ear  *ear
	next net.HardwareAddr // whom it sends to
	own  netip.Addr
}

func newParty(t *testing.T, place nettest.Place, dev string, next net.HardwareAddr, own netip.Addr) party {
	t.Helper()
	return party{newGun(t, place, dev), newEar(t, place), next, own}
}

// parties are those that talk to the web server, or as somebody who does.
type parties struct{ web, peer, attacker, lan party }

func (f *fort) parties() parties {
	front, back := mac(f.t, f.host, f.front.Bridge), mac(f.t, f.host, f.back.Bridge)
	return parties{
		web:      newParty(f.t, f.webNS, f.web.Interface, front, f.web.Addr4()),
		peer:     newParty(f.t, f.peerNS, f.peer.Interface, front, f.peer.Addr4()),
		attacker: newParty(f.t, f.attackerNS, f.attacker.Interface, back, f.attacker.Addr4()),
		lan:      newParty(f.t, f.lan, "lan0", mac(f.t, f.host, "uplink0"), lan4),
	}
}

// A flow has an answer: each side says from where and to where it
// sends.
type flow struct {
	name           string
	a, b           party
	src, dst       netip.AddrPort // as a sends
	from, answered netip.AddrPort // as b answers
}

// arrives sends one packet and reports whether the other hears it.
func arrives(from, to party, src, dst netip.AddrPort) bool {
	from.t.Helper()
	serial++
	mark := fmt.Appendf(nil, "m%07d", serial)
	from.fire(from.next, udp(src, dst, mark))
	return to.ear.hears(mark, nil, 2*time.Second)
}

// talks makes the flow an established one.
func (f *fort) talks(tk flow) {
	f.t.Helper()
	if !arrives(tk.a, tk.b, tk.src, tk.dst) {
		f.t.Fatalf("%s: nobody hears it", tk.name)
	}
	if !arrives(tk.b, tk.a, tk.from, tk.answered) {
		f.t.Fatalf("%s: the answer is not heard", tk.name)
	}
}

// An injection is a packet into a flow, by somebody who is no part of it.
type injection struct {
	who      string
	by       party
	into     flow
	src, dst netip.AddrPort
}

func (f *fort) inject(all []injection, want bool, say string) {
	f.t.Helper()
	for _, i := range all {
		tr := trick{i.into.name, func(mark []byte) [][]byte { return [][]byte{udp(i.src, i.dst, mark)} }}
		if f.try(i.by.gun, i.by.next, i.by.own, tr) != want {
			f.t.Errorf(say, i.who, i.into.name, i.src, i.dst)
		}
	}
}

// injections are packets of somebody's established flow that come in where its
// own do not. What connection tracking knows of a flow does not include the
// interface, so only a look at each packet tells.
func (f *fort) injections() {
	f.t.Helper()
	p := f.parties()
	web4, web6, peer4, att4 := f.web.Addr4(), f.web.Addr6(), f.peer.Addr4(), f.attacker.Addr4()
	// The neighbour of web sends to web itself, not to its gateway.
	beside := p.peer
	beside.next = mac(f.t, f.webNS, f.web.Interface)
	back := p.web
	back.next = mac(f.t, f.peerNS, f.peer.Interface)
	in := flow{"from the LAN to a published port", p.lan, p.web, at(lan4, 3000), at(host4, 8888), at(web4, 80), at(lan4, 3000)}
	in6 := flow{"the same, IPv6", p.lan, p.web, at(lan6, 3000), at(host6, 8888), at(web6, 80), at(lan6, 3000)}
	cross := flow{"from another network to a published port", p.attacker, p.web, at(att4, 3001), at(host4, 8888), at(web4, 80), at(att4, 3001)}
	hairpin := flow{"from a neighbour to a published port", p.peer, p.web, at(peer4, 3002), at(host4, 8888), at(web4, 80), at(f.front.Subnets[0].Gateway, 3002)}
	out := flow{"from the web server to the LAN", p.web, p.lan, at(web4, 3003), at(lan4, 7002), at(lan4, 7002), at(host4, 3003)}
	near := flow{"between neighbours", beside, back, at(peer4, 3004), at(web4, 80), at(web4, 80), at(peer4, 3004)}
	all := []injection{
		{"another network", p.attacker, in, in.src, in.dst},
		{"another network", p.attacker, in6, in6.src, in6.dst},
		{"another network", p.attacker, hairpin, hairpin.src, hairpin.dst},
		{"another network", p.attacker, out, out.from, out.answered},
		{"another network", p.attacker, out, out.from, at(web4, 3003)},
		{"another network", p.attacker, near, near.src, near.dst},
		{"a neighbour", p.peer, in, in.src, in.dst},
		{"a neighbour", p.peer, cross, cross.src, cross.dst},
		{"a neighbour", p.peer, out, out.from, out.answered},
		{"the LAN", p.lan, cross, cross.src, cross.dst},
		{"the LAN", p.lan, hairpin, hairpin.src, hairpin.dst},
		{"the LAN", p.lan, near, near.src, near.dst},
		{"the LAN", p.lan, out, out.from, at(web4, 3003)},
		{"the LAN", p.lan, in, in.src, at(web4, 80)},
	}
	flows := []flow{in, in6, cross, hairpin, out, near}
	for _, tk := range flows {
		f.talks(tk)
	}
	f.inject(all, false, "%s got into the flow %s: %s to %s")
	f.host.Try("conntrack", "-F")
	f.opened(func() {
		for _, tk := range flows {
			if tk.name == hairpin.name {
				continue // an open host masquerades nothing inside
			}
			f.talks(tk)
		}
		f.inject(all, true, "control: on an open host %s did not get into the flow %s: %s to %s")
	})
	f.host.Try("conntrack", "-F")
	f.heal()
}

// survivors are flows that were opened while the table was gone, but were
// tracked: with the table they end.
func (f *fort) survivors() {
	f.t.Helper()
	p := f.parties()
	web4, att4 := f.web.Addr4(), f.attacker.Addr4()
	flows := []flow{
		{"from another network", p.attacker, p.web, at(att4, 3100), at(web4, 80), at(web4, 80), at(att4, 3100)},
		{"from the LAN", p.lan, p.web, at(lan4, 3100), at(web4, 80), at(web4, 80), at(lan4, 3100)},
		{"to another network", p.web, p.attacker, at(web4, 3101), at(att4, 80), at(att4, 80), at(web4, 3101)},
	}
	f.opened(func() {
		for _, tk := range flows {
			f.talks(tk)
			src := tk.src
			if out := f.host.Run(f.t, "conntrack", "-L", "-p", "udp", "--orig-src", src.Addr().String(), "--orig-port-src", fmt.Sprint(src.Port())); !strings.Contains(out, "dport") || strings.Contains(out, "UNREPLIED") {
				f.t.Errorf("control: the flow %s is not an established one: %q", tk.name, out)
			}
		}
	})
	f.heal()
	for _, tk := range flows {
		serial++
		there, back := fmt.Appendf(nil, "m%07d", serial), fmt.Appendf(nil, "n%07d", serial)
		tk.a.fire(tk.a.next, udp(tk.src, tk.dst, there))
		tk.b.fire(tk.b.next, udp(tk.from, tk.answered, back))
		if tk.b.ear.hears(there, nil, 500*time.Millisecond) {
			f.t.Errorf("a flow %s that was opened without the table lives on", tk.name)
		}
		// What leaves to the outside is anybody's right.
		if tk.a.own != lan4 && tk.a.ear.hears(back, nil, 500*time.Millisecond) {
			f.t.Errorf("the answer of a flow %s that was opened without the table is heard", tk.name)
		}
	}
	f.host.Try("conntrack", "-F")
}

// untracked: what connection tracking leaves alone, as it does neighbour
// discovery, does not leave an internal network either.
func (f *fort) untracked() {
	f.t.Helper()
	prisoner := newParty(f.t, f.cagedNS, f.caged.Interface, mac(f.t, f.host, f.vault.Bridge), f.caged.Addr6())
	outside := newEar(f.t, f.lan)
	leaks := func(patience time.Duration) bool {
		serial++
		mark := fmt.Appendf(nil, "m%07d", serial)
		prisoner.fire(prisoner.next, discovery(prisoner.own, lan6, mark))
		return outside.hears(mark, nil, patience)
	}
	if leaks(500 * time.Millisecond) {
		f.t.Error("the internal network reached the LAN by neighbour discovery")
	}
	f.opened(func() {
		if !leaks(2 * time.Second) {
			f.t.Error("control: neighbour discovery does not leave an open host")
		}
	})
	f.heal()
}

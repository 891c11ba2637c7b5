// Package plan turns networks, sandboxes, endpoints and ports into the kernel
// objects they need, and tells how to get from one set of objects to another.
// It does no I/O and knows no clock: same input, same output.
//
// A [State] is a set of kernel objects, each under the key the kernel knows it
// by. The plan of a host is the sum of its parts ([Base], [Network],
// [Sandbox], [Ports]); [Diff] compares two States; [Steps] orders the
// difference so that it can be cut anywhere and never leaves the host more
// open than before.
package plan

import (
	"maps"
	"net/netip"

	"berth"
)

// A Place is a network namespace: the id of a sandbox, or Host.
type Place string

// Host is the namespace that Berth runs in.
const Host Place = ""

// Protocol is the rtm_protocol and FRA_PROTOCOL number of everything Berth
// routes by; no other program of rtnetlink(7)'s registry uses it.
const Protocol = 98

// A State is a set of kernel objects. The zero State is empty.
type State struct {
	// Table reports whether the table inet berth is there with exactly the
	// rules of ruleset.nft.
	Table bool
	// OtherTable reports that it is there with other rules. Only a State that
	// was read has it.
	OtherTable bool

	Links   map[LinkKey]Link
	Addrs   map[AddrKey]Addr
	Routes  map[RouteKey]Route
	Rules   map[RuleKey]struct{}
	Sysctls map[SysctlKey]string
	Elems   map[ElemKey]Elem
	Shapes  map[LinkKey]Shape
}

// A LinkKey names a network interface.
type LinkKey struct {
	Place Place
	Name  string
}

// LinkKind is how a link is made.
type LinkKind string

// The kinds of link. A Loopback is never made or deleted, only brought up.
const (
	BridgeLink LinkKind = "bridge"
	VethLink   LinkKind = "veth"
	Loopback   LinkKind = "loopback"
	// Turnstile is an ifb(4): what is sent to it comes back out where it was
	// taken. A queue can stand only where packets leave a link, so what comes
	// in by one is sent through a turnstile to be held back.
	Turnstile LinkKind = "ifb"
)

// A Link is a network interface as Berth wants it.
type Link struct {
	Kind  LinkKind
	Alias string // ifalias: "berth:" and the id of the network or endpoint
	MTU   int    // 0 leaves the kernel's own (loopback)
	MAC   berth.MAC
	Up    bool
	// Promisc: a bridge that takes up every frame.
	Promisc bool

	// Peer is a veth's other end. Both ends of a pair are in the State, each
	// with the other as Peer.
	Peer LinkKey
	// Master is the bridge the link is a port of.
	Master   string
	Hairpin  bool // bridge port: may send back where it came from
	Isolated bool // bridge port: reaches no other isolated port
	// NoLinkLocal is addrgenmode none: the kernel makes no fe80:: address.
	NoLinkLocal bool
}

// A Shape is how what passes a link is held back. The zero Shape is not at all.
type Shape struct {
	// What leaves the link waits in a queue (tbf) for its turn. Rate is bytes
	// each second, 0 for no queue; Burst is the bytes that may leave at once
	// after a pause; Queue is the bytes that may wait, those of Burst included.
	Rate         uint64
	Burst, Queue uint32
	// Divert is the turnstile that what comes in by the link passes; empty for
	// none.
	Divert string
}

// An AddrKey is an address on a link. IPv6 addresses are put with nodad.
type AddrKey struct {
	Link   LinkKey
	Prefix netip.Prefix // not masked: the address and its subnet's length
}

// An Addr is what is behind an AddrKey.
type Addr struct {
	// Bare says that somebody took away a route that the kernel made with the
	// address. Only a State that was read has it.
	Bare bool
}

// A RouteKey names a route of Berth's own protocol number.
type RouteKey struct {
	Place  Place
	Table  int // 254 main, 255 local, or a table of Berth's own
	Dst    netip.Prefix
	Dev    string
	Metric int // 0 is the kernel's default (IPv6: 1024)
}

// A Route is what is behind a RouteKey.
type Route struct {
	Gateway netip.Addr // not valid: on link
	Src     netip.Addr // preferred source; not valid: none
	Local   bool       // type local instead of unicast
}

// A RuleKey is a routing policy rule: packets from a source look in a table.
type RuleKey struct {
	Place    Place
	From     netip.Prefix
	Table    int
	Priority int
}

// A SysctlKey is a file below /proc/sys of a place's namespace, with slashes:
// "net/ipv4/conf/eth0/forwarding".
type SysctlKey struct {
	Place Place
	Path  string
}

// An ElemKey is an element of a set or map of table inet berth. Key is written
// as nft writes it: "10.9.0.0/24", "bt-a . bt-a", "tcp . 8080".
type ElemKey struct {
	Set string
	Key string
}

// An Elem is what is behind an ElemKey.
type Elem struct {
	Value   string // of a map, as nft writes it: "10.9.0.2 . 80"; empty in a set
	Comment string // who it belongs to; at most 200 bytes
}

// Sum returns the union of its parts. Where two parts have the same key, the
// later wins; parts of one host give equal values.
func Sum(parts ...State) State {
	var s State
	for _, p := range parts {
		s.Add(p)
	}
	return s
}

// Add puts every object of p into s.
func (s *State) Add(p State) {
	s.Table = s.Table || p.Table
	add(&s.Links, p.Links)
	add(&s.Addrs, p.Addrs)
	add(&s.Routes, p.Routes)
	add(&s.Rules, p.Rules)
	add(&s.Sysctls, p.Sysctls)
	add(&s.Elems, p.Elems)
	add(&s.Shapes, p.Shapes)
}

func add[K comparable, V any](into *map[K]V, from map[K]V) {
	if len(from) == 0 {
		return
	}
	if *into == nil {
		*into = maps.Clone(from)
		return
	}
	maps.Copy(*into, from)
}

func (s *State) link(k LinkKey, v Link)         { set(&s.Links, k, v) }
func (s *State) addr(k LinkKey, p netip.Prefix) { set(&s.Addrs, AddrKey{k, p}, Addr{}) }
func (s *State) route(k RouteKey, v Route)      { set(&s.Routes, k, v) }
func (s *State) rule(k RuleKey)                 { set(&s.Rules, k, struct{}{}) }
func (s *State) sysctl(p Place, path, v string) { set(&s.Sysctls, SysctlKey{p, path}, v) }
func (s *State) shape(k LinkKey, v Shape)       { set(&s.Shapes, k, v) }
func (s *State) elem(name, key, v, comment string) {
	set(&s.Elems, ElemKey{name, key}, Elem{v, comment})
}

func set[K comparable, V any](m *map[K]V, k K, v V) {
	if *m == nil {
		*m = map[K]V{}
	}
	(*m)[k] = v
}

// Empty reports whether s holds nothing.
func (s State) Empty() bool { return !s.Table && s.Len() == 0 }

// Len is the number of objects in s, the table not counted.
func (s State) Len() int {
	return len(s.Links) + len(s.Addrs) + len(s.Routes) + len(s.Rules) + len(s.Sysctls) + len(s.Elems) + len(s.Shapes)
}

// A Delta is how to turn one State into another: what to put and what to drop.
// A key in both is an object whose value changes.
type Delta struct {
	Put, Drop State
	// Cut ends the connections of ports that lead elsewhere whatever their
	// protocol, not only UDP's.
	Cut bool
}

// Empty reports whether there is nothing to do.
func (d Delta) Empty() bool { return d.Put.Empty() && d.Drop.Empty() }

// Diff reports how to get from have to want. Diff(s, s) is empty.
//
// A table that is missing or has other rules is made anew, and with it go its
// elements: every wanted element is put. A loopback is never dropped.
func Diff(have, want State) Delta {
	var d Delta
	if want.Table && !have.Table {
		d.Put.Table = true
		have.Elems = nil
	}
	d.Drop.Table = (have.Table || have.OtherTable) && !want.Table
	have = withoutRemade(have, want)
	d.Put.Links, d.Drop.Links = diff(have.Links, want.Links)
	maps.DeleteFunc(d.Drop.Links, func(_ LinkKey, l Link) bool { return l.Kind == Loopback })
	d.Put.Addrs, d.Drop.Addrs = diff(have.Addrs, want.Addrs)
	d.Put.Routes, d.Drop.Routes = diff(have.Routes, want.Routes)
	d.Put.Rules, d.Drop.Rules = diff(have.Rules, want.Rules)
	d.Put.Sysctls, d.Drop.Sysctls = diff(have.Sysctls, want.Sysctls)
	d.Put.Elems, d.Drop.Elems = diff(have.Elems, want.Elems)
	d.Put.Shapes, d.Drop.Shapes = diff(have.Shapes, want.Shapes)
	return d
}

// withoutRemade takes out of have what hangs on links that must be made anew,
// because their kind or their other end changes: it goes with them.
func withoutRemade(have, want State) State {
	remade := map[LinkKey]bool{}
	for k, w := range want.Links {
		if h, ok := have.Links[k]; ok && (h.Kind != w.Kind || h.Peer != w.Peer) {
			remade[k] = true
		}
	}
	if len(remade) == 0 {
		return have
	}
	out := Sum(have)
	maps.DeleteFunc(out.Addrs, func(k AddrKey, _ Addr) bool { return remade[k.Link] })
	maps.DeleteFunc(out.Routes, func(k RouteKey, _ Route) bool { return remade[LinkKey{k.Place, k.Dev}] })
	maps.DeleteFunc(out.Sysctls, func(k SysctlKey, _ string) bool { return remade[LinkKey{k.Place, device(k.Path)}] })
	maps.DeleteFunc(out.Shapes, func(k LinkKey, _ Shape) bool { return remade[k] })
	return out
}

// diff lists a changed key in both: its old value under drop, its new one
// under put.
func diff[K, V comparable](have, want map[K]V) (put, drop map[K]V) {
	put, drop = make(map[K]V, max(0, len(want)-len(have))), make(map[K]V, max(0, len(have)-len(want)))
	for k, v := range want {
		old, ok := have[k]
		if ok && old == v {
			continue
		}
		put[k] = v
		if ok {
			drop[k] = old
		}
	}
	for k, v := range have {
		if _, ok := want[k]; !ok {
			drop[k] = v
		}
	}
	return put, drop
}

// Split deals d out: each part gets the changes of the objects that are its
// own, and what belongs to none of them is the rest.
func (d Delta) Split(parts []State) (rest Delta, split []Delta) {
	rest = Delta{Put: clone(d.Put), Drop: clone(d.Drop)}
	for _, p := range parts {
		split = append(split, Delta{Put: take(&rest.Put, p), Drop: take(&rest.Drop, p)})
	}
	return rest, split
}

func clone(s State) State { return Sum(s) }

// take moves the objects of s that have a key in p.
func take(s *State, p State) State {
	return State{
		Links:   move(s.Links, p.Links),
		Addrs:   move(s.Addrs, p.Addrs),
		Routes:  move(s.Routes, p.Routes),
		Rules:   move(s.Rules, p.Rules),
		Sysctls: move(s.Sysctls, p.Sysctls),
		Elems:   move(s.Elems, p.Elems),
		Shapes:  move(s.Shapes, p.Shapes),
	}
}

func move[K comparable, V any](from, keys map[K]V) map[K]V {
	out := map[K]V{}
	for k := range keys {
		if v, ok := from[k]; ok {
			out[k] = v
			delete(from, k)
		}
	}
	return out
}

package plan

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"berth"
)

// grants are the sets that open something; all others close, or say how an
// opened packet is dressed.
var grants = map[string]bool{
	"within": true, "open": true,
	"publish4": true, "publish6": true, "publish_any4": true, "publish_any6": true,
}

// Steps orders a Delta so that it can be cut anywhere and leaves the host no
// more open than before or after: what opens goes out first and in last, what
// closes goes in first and out last.
//
//	out: grants ─ shapes, rules, routes, addresses ─ links ─ forwarding ─ guards
//	in:  guards ─ forwarding ─ links, shapes, addresses, up, routes, rules ─ grants
func Steps(d Delta) []Step {
	b := builder{d: d, put: elements(d.Put.Elems), drop: elements(d.Drop.Elems)}
	b.closeWays()
	b.firstTransaction()
	b.globalSysctls()
	b.dropShapes()
	b.dropInside()
	b.dropLinks()
	b.putLinks()
	b.lastGrants()
	b.restoreSysctls()
	b.lastGuards()
	return b.steps
}

type builder struct {
	d         Delta
	put, drop ordered // the elements of d
	steps     []Step
}

func (b *builder) add(s ...Step) { b.steps = append(b.steps, s...) }

// linkGoes reports whether dev's link is dropped and not put: what hangs on it
// goes with it.
func (b *builder) linkGoes(k LinkKey) bool {
	_, drop := b.d.Drop.Links[k]
	_, put := b.d.Put.Links[k]
	return drop && !put
}

// closeWays takes back the sysctls that let 127.0.0.1 out.
func (b *builder) closeWays() {
	for _, k := range sorted(b.d.Put.Sysctls, compareSysctl) {
		if b.closes(k) {
			b.add(SetSysctl{k, b.d.Put.Sysctls[k]})
		}
	}
	// A link that others made stays, and so would its way.
	for _, k := range sorted(b.d.Drop.Sysctls, compareSysctl) {
		if _, again := b.d.Put.Sysctls[k]; !again && isWay(k) && b.d.Drop.Sysctls[k] != "0" && !b.linkGoes(LinkKey{k.Place, device(k.Path)}) {
			b.add(SetSysctl{k, "0"})
		}
	}
}

// closes reports whether k closes a way of a link that stands already.
func (b *builder) closes(k SysctlKey) bool {
	_, made := b.d.Put.Links[LinkKey{k.Place, device(k.Path)}]
	return isWay(k) && b.d.Put.Sysctls[k] == "0" && !made
}

// opens reports whether k opens a way.
func (b *builder) opens(k SysctlKey) bool { return isWay(k) && b.d.Put.Sysctls[k] != "0" }

// firstTransaction takes grants out and puts guards in, at once. A table that
// is made anew gets its guards here and its grants when what they lead to is
// there.
func (b *builder) firstTransaction() {
	t := Transaction{Rebuild: b.d.Put.Table, Put: b.put.guards}
	if !t.Rebuild && !b.d.Drop.Table {
		t.Drop = without(b.drop.grants, b.d.Put.Elems)
	}
	if !t.Rebuild {
		t.Drop = append(t.Drop, b.changed(t.Put)...)
	}
	if t.Rebuild || len(t.Drop)+len(t.Put) > 0 {
		b.add(t)
	}
}

// globalSysctls writes what belongs to no link of ours: forwarding, and before
// it what forwarding would turn off.
func (b *builder) globalSysctls() {
	var forward []Step
	for _, k := range sorted(b.d.Put.Sysctls, compareSysctl) {
		switch {
		case isForward(k):
			forward = append(forward, SetSysctl{k, b.d.Put.Sysctls[k]})
		case BelievesRA(k, b.d.Put.Sysctls[k]):
			b.add(SetSysctl{k, "2"})
		}
	}
	b.add(forward...)
}

func (b *builder) dropInside() {
	for _, k := range sorted(b.d.Drop.Rules, compareRule) {
		b.add(DropRule{k})
	}
	for _, k := range sorted(b.d.Drop.Routes, compareRoute) {
		if _, again := b.d.Put.Routes[k]; !again && !b.linkGoes(LinkKey{k.Place, k.Dev}) {
			b.add(DropRoute{k, b.d.Drop.Routes[k]})
		}
	}
	for _, k := range sorted(b.d.Drop.Addrs, compareAddr) {
		if !b.linkGoes(k.Link) && !b.bare(k) {
			b.add(DropAddr{k})
		}
	}
}

// bare reports whether k is an address that stands without its routes. It is
// not dropped: with the last IPv4 address of a link go all its routes.
func (b *builder) bare(k AddrKey) bool {
	_, drop := b.d.Drop.Addrs[k]
	_, put := b.d.Put.Addrs[k]
	return drop && put
}

// dropLinks deletes links, those of the host with their other ends, and forgets the connections
// of addresses and ports that are gone. Endpoints go before bridges.
func (b *builder) dropLinks() {
	var ends, bridges []LinkKey
	for _, k := range sorted(b.d.Drop.Links, compareLink) {
		l := b.d.Drop.Links[k]
		if !b.linkGoes(k) || l.Kind == Loopback {
			continue
		}
		if l.Kind == BridgeLink {
			bridges = append(bridges, k)
			continue
		}
		// The peer dies with it, and the host's end can always be reached. Of a
		// wire between sandboxes both are named: one that has lost its name, but
		// not its last process, keeps its end.
		if b.linkGoes(l.Peer) && l.Peer.Place == Host && k.Place != Host {
			continue
		}
		ends = append(ends, k)
	}
	b.dropByPlace(ends)
	if f := flush(b.d, b.drop.grants); len(f.Addrs)+len(f.Ports) > 0 {
		b.add(f)
	}
	b.dropByPlace(bridges)
}

func (b *builder) dropByPlace(keys []LinkKey) {
	for i := 0; i < len(keys); {
		step := DropLinks{Place: keys[i].Place}
		for ; i < len(keys) && keys[i].Place == step.Place; i++ {
			step.Names = append(step.Names, keys[i].Name)
		}
		b.add(step)
	}
}

// flush derives the connections to forget: of addresses that left a sandbox,
// and of ports that lead nowhere or elsewhere. Only UDP of the latter: a TCP
// connection ends itself.
func flush(d Delta, dropped []Element) FlushConntrack {
	f := FlushConntrack{Cut: d.Cut}
	for _, k := range sorted(d.Drop.Addrs, compareAddr) {
		if _, again := d.Put.Addrs[k]; !again && k.Link.Place != Host {
			f.Addrs = append(f.Addrs, k.Prefix.Addr())
		}
	}
	for _, e := range dropped {
		if p, ok := portOf(e.ElemKey); ok && (p.Protocol == berth.UDP || d.Cut) {
			f.Ports = append(f.Ports, p)
		}
	}
	return f
}

// portOf reads the key of a publish map back.
func portOf(k ElemKey) (berth.PortKey, bool) {
	var p berth.PortKey
	rest := k.Key
	switch k.Set {
	case "publish_any4":
		p.HostIP = netip.IPv4Unspecified()
	case "publish_any6":
		p.HostIP = netip.IPv6Unspecified()
	case "publish4", "publish6":
		var ip string
		ip, rest, _ = strings.Cut(rest, " . ")
		p.HostIP, _ = netip.ParseAddr(ip)
	default:
		return p, false
	}
	proto, port, _ := strings.Cut(rest, " . ")
	n, err := strconv.ParseUint(port, 10, 16)
	p.Protocol, p.HostPort = berth.Protocol(proto), uint16(n)
	return p, err == nil && p.HostIP.IsValid()
}

// putLinks makes links, closes their interfaces, gives them addresses and only
// then brings them up.
func (b *builder) putLinks() {
	done := map[LinkKey]bool{}
	up := map[LinkKey]bool{}
	order := sorted(b.d.Put.Links, func(x, y LinkKey) int {
		// Bridges before their ports.
		return cmp.Or(cmp.Compare(rank(b.d.Put.Links[x]), rank(b.d.Put.Links[y])), compareLink(x, y))
	})
	for _, k := range order {
		l := b.d.Put.Links[k]
		switch {
		case l.Kind == Loopback:
			up[k] = true
		case l.Kind == BridgeLink, l.Kind == Turnstile:
			up[k] = l.Up
			l.Up = false
			b.add(PutLink{Key: k, Link: l})
		case !done[k]:
			inside := b.d.Put.Links[l.Peer]
			done[k], done[l.Peer] = true, true
			b.add(PutLink{Key: k, Link: l, Inside: inside})
			up[l.Peer] = inside.Up
		}
	}
	b.linkSysctls()
	b.putShapes(up)
	for _, k := range sorted(b.d.Put.Addrs, compareAddr) {
		b.add(PutAddr{Key: k, Bare: b.bare(k)})
	}
	for _, k := range sorted(up, compareLink) {
		if up[k] {
			b.add(UpLink{k})
		}
	}
	for _, k := range sorted(b.d.Put.Routes, compareRoute) {
		b.add(PutRoute{Key: k, Route: b.d.Put.Routes[k]})
	}
	for _, k := range sorted(b.d.Put.Rules, compareRule) {
		b.add(PutRule{k})
	}
}

// rank sorts links into the order they are made in.
func rank(l Link) int {
	if l.Kind == BridgeLink {
		return 0
	}
	return 1
}

// linkSysctls writes what belongs to a link and opens nothing.
// disable_ipv6 comes first: it wipes what stands below it.
func (b *builder) linkSysctls() {
	keys := slices.DeleteFunc(slices.Collect(maps.Keys(b.d.Put.Sysctls)), func(k SysctlKey) bool {
		return isForward(k) || b.closes(k) || b.opens(k) || strings.HasSuffix(k.Path, "/accept_ra") && b.d.Put.Sysctls[k] == "2"
	})
	slices.SortFunc(keys, func(x, y SysctlKey) int {
		xd, yd := strings.HasSuffix(x.Path, "/disable_ipv6"), strings.HasSuffix(y.Path, "/disable_ipv6")
		if xd != yd {
			if xd {
				return -1
			}
			return 1
		}
		return compareSysctl(x, y)
	})
	for _, k := range keys {
		b.add(SetSysctl{k, b.d.Put.Sysctls[k]})
	}
}

// lastGrants opens what is wanted: new grants, and grants that change in place.
func (b *builder) lastGrants() {
	t := Transaction{Put: b.put.grants}
	if !b.d.Put.Table {
		t.Drop = b.changed(t.Put)
	}
	if len(t.Put) > 0 {
		b.add(t)
	}
	for _, k := range sorted(b.d.Put.Sysctls, compareSysctl) {
		if b.opens(k) {
			b.add(SetSysctl{k, b.d.Put.Sysctls[k]})
		}
	}
}

// restoreSysctls puts global sysctls back to what they were before Berth.
func (b *builder) restoreSysctls() {
	for _, k := range sorted(b.d.Drop.Sysctls, compareSysctl) {
		if _, again := b.d.Put.Sysctls[k]; again {
			continue
		}
		if isForward(k) {
			b.add(SetSysctl{k, "0"})
		} else if strings.HasSuffix(k.Path, "/accept_ra") && b.d.Drop.Sysctls[k] == "2" {
			b.add(SetSysctl{k, "1"})
		}
	}
}

// lastGuards takes guards out when nothing is left behind them.
func (b *builder) lastGuards() {
	if b.d.Drop.Table {
		b.add(Transaction{Remove: true})
		return
	}
	var t Transaction
	if !b.d.Put.Table {
		t.Drop = without(b.drop.guards, b.d.Put.Elems)
	}
	if len(t.Drop) > 0 {
		b.add(t)
	}
}

func isForward(k SysctlKey) bool {
	return k.Place == Host && (k.Path == Forward4 || k.Path == Forward6)
}

// BelievesRA reports whether k lets an uplink go on believing router
// advertisements while the host forwards. It is the one sysctl of links that
// are not Berth's.
func BelievesRA(k SysctlKey, value string) bool {
	return k.Place == Host && strings.HasSuffix(k.Path, "/accept_ra") && value == "2"
}

func isWay(k SysctlKey) bool { return strings.HasSuffix(k.Path, "/route_localnet") }

// device is the interface that a path below net/ipv4/conf or net/ipv6/conf is
// about. Names may hold dots, never slashes.
func device(path string) string {
	parts := strings.Split(path, "/")
	if len(parts) == 5 && parts[2] == "conf" {
		return parts[3]
	}
	return ""
}

func sorted[K comparable, V any](m map[K]V, by func(a, b K) int) []K {
	return slices.SortedFunc(maps.Keys(m), by)
}

func compareLink(a, b LinkKey) int {
	return cmp.Or(cmp.Compare(a.Place, b.Place), cmp.Compare(a.Name, b.Name))
}

func compareAddr(a, b AddrKey) int {
	return cmp.Or(compareLink(a.Link, b.Link), a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
}

// compareRoute puts a subnet's route before the gateway's that needs it.
func compareRoute(a, b RouteKey) int {
	return cmp.Or(cmp.Compare(a.Place, b.Place), cmp.Compare(a.Table, b.Table), cmp.Compare(b.Dst.Bits(), a.Dst.Bits()),
		a.Dst.Addr().Compare(b.Dst.Addr()), cmp.Compare(a.Dev, b.Dev), cmp.Compare(a.Metric, b.Metric))
}

func compareRule(a, b RuleKey) int {
	return cmp.Or(cmp.Compare(a.Place, b.Place), cmp.Compare(a.Priority, b.Priority), a.From.Addr().Compare(b.From.Addr()))
}

func compareSysctl(a, b SysctlKey) int {
	return cmp.Or(cmp.Compare(a.Place, b.Place), cmp.Compare(a.Path, b.Path))
}

// changed are the old values of those of some elements that change.
func (b *builder) changed(put []Element) []Element {
	var out []Element
	for _, e := range put {
		if old, was := b.d.Drop.Elems[e.ElemKey]; was {
			out = append(out, Element{e.ElemKey, old})
		}
	}
	return out
}

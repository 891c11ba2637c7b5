package plan

import (
	"crypto/sha256"
	"net/netip"
	"slices"
	"strconv"

	"berth"
)

// Uplinks are the links that were there when Berth switched forwarding on, by
// family: they do not become routed into each other.
type Uplinks struct {
	V4, V6 []string
	// AcceptRA names the links of V6 that believed router advertisements: with
	// forwarding on they do so only when told twice (accept_ra=2,
	// ip-sysctl.rst).
	AcceptRA []string
}

// Sysctl paths of the host's forwarding.
const (
	Forward4 = "net/ipv4/ip_forward"
	Forward6 = "net/ipv6/conf/all/forwarding"
)

// Base returns what the host needs as soon as it has a network: the table,
// forwarding by family, and the uplinks that stay apart.
func Base(v4, v6 bool, up Uplinks) State {
	s := State{Table: true}
	if v4 {
		s.sysctl(Host, Forward4, "1")
		for _, l := range up.V4 {
			s.elem("uplinks", "ipv4 . "+l, "", "was here before forwarding")
		}
	}
	if v6 {
		s.sysctl(Host, Forward6, "1")
		for _, l := range up.V6 {
			s.elem("uplinks", "ipv6 . "+l, "", "was here before forwarding")
		}
		for _, l := range up.AcceptRA {
			s.sysctl(Host, "net/ipv6/conf/"+l+"/accept_ra", "2")
		}
	}
	return s
}

// Network returns what a network needs, its endpoints not counted. Published
// reports whether any port leads to one of them. A link has nothing of its
// own: its parts come with its endpoints.
func Network(n berth.Network, published bool) State {
	var s State
	if n.Driver != berth.Bridge {
		return s
	}
	if n.Owned {
		s.link(LinkKey{Host, n.Bridge}, Link{
			Kind: BridgeLink, Alias: Alias(n.ID), MTU: n.MTU, MAC: BridgeMAC(n.ID), Up: true, Promisc: n.Promisc,
		})
	}
	if n.NoAddress {
		s.carryOnly(n)
		return s
	}
	if n.Owned {
		s.quietHostEnd(n.Bridge, n)
	}
	for _, sub := range n.Subnets {
		if !sub.Gateway.IsValid() {
			continue
		}
		p := netip.PrefixFrom(sub.Gateway, sub.Prefix.Bits())
		if !slices.Contains(n.ForeignAddrs, p) {
			s.addr(LinkKey{Host, n.Bridge}, p)
		}
	}
	prefixes := make([]netip.Prefix, 0, len(n.Subnets))
	for _, sub := range n.Subnets {
		prefixes = append(prefixes, sub.Prefix)
	}
	s.border(n, n.Bridge, prefixes)
	s.loopbackWay(n, n.Bridge, published)
	return s
}

// border adds the elements that set a network apart: dev is its interface on
// the host, prefixes are the addresses behind it.
func (s *State) border(n berth.Network, dev string, prefixes []netip.Prefix) {
	by := "network " + cut(n.Name)
	s.elem("bridges", dev, "", by)
	s.elem("refused_from", dev, "", by)
	s.elem("refused_to", dev, "", by)
	if !n.Isolated {
		s.elem("within", dev+" . "+dev, "", by)
	}
	if n.Internal {
		s.elem("closed", dev, "", by)
	}
	if n.HostDeny {
		s.elem("deaf", dev, "", by)
	}
	if n.Open {
		s.elem("open", dev, "", by)
	}
	for _, p := range prefixes {
		f := family(p.Addr())
		if n.Masquerade && !n.Internal {
			s.elem("masq"+f, p.String(), "", by)
		}
		if !n.Open {
			s.elem("shield"+f, p.String(), "", by)
		}
		s.elem("hairpin"+f, p.String()+" . "+dev, "", by)
	}
}

// loopbackWay lets the host's 127.0.0.1 and ::1 lead through a published port.
// Without the table it would let a sandbox reach the host's loopback, so it is
// open only while a port is published.
func (s *State) loopbackWay(n berth.Network, dev string, published bool) {
	if n.Has4() {
		v := "0"
		if published {
			v = "1"
		}
		s.sysctl(Host, "net/ipv4/conf/"+dev+"/route_localnet", v)
	}
	if n.Has6() && published {
		// IPv6 has no route_localnet. A second local route lets ::1 be a source
		// on this link; its metric keeps lo's own in front.
		s.route(RouteKey{Host, TableLocal, netip.MustParsePrefix("::1/128"), dev, 9800}, Route{Local: true})
	}
}

// quietHostEnd closes a host interface of a network to what a sandbox could
// say to the host itself.
func (s *State) quietHostEnd(dev string, n berth.Network) {
	if n.Has6() {
		s.sysctl(Host, "net/ipv6/conf/"+dev+"/accept_ra", "0")
		// A router asks for its neighbours from its link-local address, and not
		// while that is being tried for a duplicate: the first second of a
		// network would be lost.
		s.sysctl(Host, "net/ipv6/conf/"+dev+"/accept_dad", "0")
		s.sysctl(Host, "net/ipv6/conf/"+dev+"/disable_ipv6", "0")
	} else {
		// Else a sandbox's router advertisement becomes the host's default
		// route (CVE-2020-13401).
		s.sysctl(Host, "net/ipv6/conf/"+dev+"/disable_ipv6", "1")
	}
	s.sysctl(Host, "net/ipv4/conf/"+dev+"/accept_redirects", "0")
}

// Table numbers of rtnetlink(7).
const (
	TableMain  = 254
	TableLocal = 255
)

// An Attachment is an endpoint with what the plan of its sandbox needs to
// know of its network.
type Attachment struct {
	Endpoint berth.Endpoint
	Network  berth.Network
	// Other is the other end of a link without a host end; nil while only one
	// sandbox is connected.
	Other *berth.Endpoint
	// Published reports whether a port leads to the endpoint. Only a link
	// needs it.
	Published bool
}

// Sandbox returns what a sandbox needs, its host ends included. It is the unit
// of planning because the default route depends on all of its endpoints.
// An endpoint that is leaving needs nothing.
func Sandbox(id string, all []Attachment) State {
	var s State
	place := Place(id)
	staying := make([]Attachment, 0, len(all))
	for _, a := range all {
		if !a.Endpoint.Leaving {
			staying = append(staying, a)
		}
	}
	if len(staying) == 0 {
		return s
	}
	for _, a := range staying {
		if a.Endpoint.Found {
			s.found(a)
		}
	}
	staying = slices.DeleteFunc(staying, func(a Attachment) bool { return a.Endpoint.Found })
	if len(staying) == 0 {
		return s
	}
	s.link(LinkKey{place, "lo"}, Link{Kind: Loopback, Up: true})
	for _, a := range staying {
		if !a.Network.HostEnd && a.Other == nil {
			continue // the wire is laid when the second end comes
		}
		s.wire(place, a)
		s.inside(place, a)
		if len(staying) > 1 {
			s.sourceRoutes(place, a)
		}
	}
	for _, v4 := range []bool{true, false} {
		if a, gw, ok := defaultRoute(staying, v4); ok {
			s.route(RouteKey{place, TableMain, anywhere(gw), a.Endpoint.Interface, 0}, Route{Gateway: gw})
		}
	}
	return s
}

// HostEnd is the name of an endpoint's end on the host.
func HostEnd(endpointID string) string { return "bt" + endpointID[:8] }

// Alias is the ifalias that makes a link recognisable as Berth's.
func Alias(id string) string { return AliasPrefix + id }

// AliasPrefix opens the ifalias of every link of Berth's.
const AliasPrefix = "berth:"

// wire adds both ends of the veth pair of a, and the host's side of a link.
func (s *State) wire(place Place, a Attachment) {
	n, e := a.Network, a.Endpoint
	in := LinkKey{place, e.Interface}
	inside := Link{Kind: VethLink, Alias: Alias(e.ID), MTU: n.MTU, MAC: e.MAC, Up: true}
	if !n.HostEnd {
		far := LinkKey{Place(a.Other.Sandbox), a.Other.Interface}
		inside.Peer = far
		inside.Alias = Alias(wireID(e, *a.Other))
		s.link(in, inside)
		s.link(far, Link{Kind: VethLink, Alias: inside.Alias, MTU: n.MTU, MAC: a.Other.MAC, Up: true, Peer: in})
		return
	}
	out := LinkKey{Host, HostEnd(e.ID)}
	host := Link{Kind: VethLink, Alias: Alias(e.ID), MTU: n.MTU, Up: true, Peer: in}
	inside.Peer = out
	if n.Driver == berth.Bridge {
		host.NoLinkLocal = true // the bridge has the addresses
		host.Master, host.Hairpin, host.Isolated = n.Bridge, !n.NoHairpin, n.Isolated
	}
	s.link(out, host)
	s.link(in, inside)
	s.shapes(out, n, e)
	if n.Driver == berth.Bridge {
		return
	}
	s.quietHostEnd(out.Name, n)
	var own []netip.Prefix
	for _, p := range e.Addrs {
		one := netip.PrefixFrom(p.Addr(), p.Addr().BitLen())
		own = append(own, one)
		if gw, ok := n.Gateway(p.Addr()); ok {
			s.addr(out, netip.PrefixFrom(gw, p.Bits()))
		}
		// Links may have overlapping prefixes: the host finds each end by its
		// own address, and each end is in the sets by its own address.
		s.route(RouteKey{Host, TableMain, one, out.Name, 0}, Route{})
	}
	s.border(n, out.Name, own)
	s.loopbackWay(n, out.Name, a.Published)
}

// wireID names a wire between two sandboxes the same from both ends.
func wireID(a, b berth.Endpoint) string {
	if a.ID < b.ID {
		return a.ID
	}
	return b.ID
}

// inside adds the addresses of a in its sandbox and closes its interface to
// what a neighbour could say: advertisements, redirects, packets to be routed.
func (s *State) inside(place Place, a Attachment) {
	dev := a.Endpoint.Interface
	for _, p := range a.Endpoint.Addrs {
		s.addr(LinkKey{place, dev}, p)
	}
	s.sysctl(place, "net/ipv4/conf/"+dev+"/forwarding", "0")
	s.sysctl(place, "net/ipv4/conf/"+dev+"/accept_redirects", "0")
	if !a.Endpoint.Addr6().IsValid() {
		s.sysctl(place, "net/ipv6/conf/"+dev+"/disable_ipv6", "1")
		return
	}
	for _, kv := range [][2]string{
		{"disable_ipv6", "0"}, {"accept_dad", "0"}, {"forwarding", "0"}, {"accept_ra", "0"}, {"accept_redirects", "0"},
	} {
		s.sysctl(place, "net/ipv6/conf/"+dev+"/"+kv[0], kv[1])
	}
}

// firstTable is the routing table of slot 0, and the priority of its rules:
// before main (32766), away from the numbers people use by hand.
const firstTable = 9800

// sourceRoutes adds what makes a reply leave by the leg it came in on. A
// sandbox with one endpoint has no need of it.
func (s *State) sourceRoutes(place Place, a Attachment) {
	dev, table := a.Endpoint.Interface, firstTable+a.Endpoint.Slot
	for _, p := range a.Endpoint.Addrs {
		s.rule(RuleKey{place, netip.PrefixFrom(p.Addr(), p.Addr().BitLen()), table, table})
		s.route(RouteKey{place, table, p.Masked(), dev, 0}, Route{})
		if gw, ok := wayOut(a, p.Addr()); ok {
			s.route(RouteKey{place, table, anywhere(gw), dev, 0}, Route{Gateway: gw})
		}
	}
}

// wayOut returns the gateway by which addr leaves its network, if it may.
func wayOut(a Attachment, addr netip.Addr) (netip.Addr, bool) {
	if a.Network.Internal || !a.Network.HostEnd || a.Network.NoDefaultRoute {
		return netip.Addr{}, false
	}
	return a.Network.Gateway(addr)
}

// DefaultEndpoint returns the endpoint that gives a sandbox its default route
// of a family: the highest GwPriority wins, then the one that was there first.
func DefaultEndpoint(all []Attachment, v4 bool) (berth.Endpoint, bool) {
	a, _, ok := defaultRoute(all, v4)
	return a.Endpoint, ok
}

func defaultRoute(all []Attachment, v4 bool) (best Attachment, gw netip.Addr, ok bool) {
	for _, a := range all {
		if a.Endpoint.Leaving {
			continue
		}
		addr := a.Endpoint.Addr6()
		if v4 {
			addr = a.Endpoint.Addr4()
		}
		if !addr.IsValid() {
			continue
		}
		g, has := wayOut(a, addr)
		if !has {
			continue
		}
		if ok && (a.Endpoint.GwPriority < best.Endpoint.GwPriority ||
			a.Endpoint.GwPriority == best.Endpoint.GwPriority && a.Endpoint.Slot > best.Endpoint.Slot) {
			continue
		}
		best, gw, ok = a, g, true
	}
	return best, gw, ok
}

// Ports returns what published ports of a sandbox need: one element each. Who
// comments them.
func Ports(who string, all ...berth.Port) State {
	elems := make(map[ElemKey]Elem, len(all))
	comment := "sandbox " + cut(who)
	var buf []byte
	for _, p := range all {
		f := family(p.To.Addr())
		k := ElemKey{Set: "publish_any" + f}
		buf = buf[:0]
		if !p.HostIP.IsUnspecified() {
			k.Set = "publish" + f
			buf = append(p.HostIP.AppendTo(buf), " . "...)
		}
		buf = append(append(buf, p.Protocol...), " . "...)
		k.Key = string(strconv.AppendUint(buf, uint64(p.HostPort), 10))
		buf = append(p.To.Addr().AppendTo(buf[:0]), " . "...)
		elems[k] = Elem{Value: string(strconv.AppendUint(buf, uint64(p.To.Port()), 10)), Comment: comment}
	}
	return State{Elems: elems}
}

// BridgeMAC is the fixed address of a network's bridge: else a bridge takes
// the lowest of its ports and changes with them.
func BridgeMAC(networkID string) berth.MAC {
	sum := sha256.Sum256([]byte("bridge " + networkID))
	m := berth.MAC(sum[:6])
	m[0] = m[0]&^1 | 2 // unicast, locally administered
	return m
}

// cut keeps a name short enough for a comment (255 bytes of userdata).
func cut(s string) string {
	if len(s) > 128 {
		return s[:128]
	}
	return s
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "4"
	}
	return "6"
}

func anywhere(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

package foreign

import (
	"net/netip"
	"slices"
	"sync"
)

// A packet is what is tried against the chains: the first of a TCP connection,
// or an answer. Its ports are not known.
type packet struct {
	in, out             string
	ipv6                bool
	state               uint32
	source, destination netip.Prefix // not valid: not known
	protocol            uint8
}

// A need is what a network needs of one hook. It is met if one of its packets
// gets through.
type need struct {
	what    string
	hook    Hook
	ipv6    bool
	packets []packet
}

// elsewhere stands for a link that no rule names.
const elsewhere = "\x00elsewhere"

const tcp = 6

// needs lists what a network needs, by family.
func needs(n Network, b Bridged) (out []need) {
	uplinks := n.Uplinks
	if len(uplinks) == 0 {
		uplinks = []string{elsewhere}
	}
	for _, ipv6 := range []bool{false, true} {
		if ipv6 && !n.IPv6 || !ipv6 && !n.IPv4 {
			continue
		}
		var subnet netip.Prefix
		if i := slices.IndexFunc(n.Subnets, func(p netip.Prefix) bool { return p.Addr().Is6() == ipv6 }); i >= 0 {
			subnet = n.Subnets[i]
		}
		add := func(what string, hook Hook, packets ...packet) {
			for i := range packets {
				packets[i].ipv6, packets[i].protocol = ipv6, tcp
			}
			out = append(out, need{what, hook, ipv6, packets})
		}
		if !n.Internal {
			var leaving, answers, published []packet
			for _, up := range uplinks {
				leaving = append(leaving, packet{in: n.Bridge, out: up, state: New, source: subnet})
				answers = append(answers, packet{in: up, out: n.Bridge, state: Established, destination: subnet})
				published = append(published, packet{in: up, out: n.Bridge, state: New | DNAT, destination: subnet})
			}
			add("the way out", Forward, leaving...)
			add("answers from outside", Forward, answers...)
			add("published ports", Forward, published...)
		}
		if !ipv6 && b.IPv4 || ipv6 && b.IPv6 {
			add("neighbours of one network", Forward, packet{in: n.Bridge, out: n.Bridge, state: New, source: subnet, destination: subnet})
		}
		if !n.HostDeny {
			add("the host's own services", Input, packet{in: n.Bridge, state: New, source: subnet})
		}
	}
	return out
}

// patience bounds the rules that are looked at for one packet.
const patience = 1 << 16

// A walk follows one packet through a table.
type walk struct {
	chains map[string][]Rule
	packet packet
	left   int
}

// drops reports whether a base chain surely drops a packet.
func (t Table) drops(c Chain, p packet) bool {
	w := walk{chains: map[string][]Rule{}, packet: p, left: patience}
	for _, c := range t.Chains {
		w.chains[c.Name] = c.Rules
	}
	return w.drops(c.Rules, func() bool { return c.Drop }) && w.left > 0
}

// drops reports whether the packet is dropped by rules or by what follows
// them. A rule that perhaps matches has to end in a drop both ways.
func (w *walk) drops(rules []Rule, after func() bool) bool {
	for i, r := range rules {
		if w.left--; w.left <= 0 {
			return false
		}
		a := r.answers(w.packet)
		if a == no || r.Verdict == Next {
			continue
		}
		rest := sync.OnceValue(func() bool { return w.drops(rules[i+1:], after) })
		if hit := w.hit(r, rest, after); a == yes || !hit {
			return hit
		}
		return rest()
	}
	return after()
}

// hit is drops for a packet that matches r.
func (w *walk) hit(r Rule, rest, after func() bool) bool {
	switch r.Verdict {
	case Accept:
		return false
	case Drop:
		return true
	case Return:
		return after()
	case Jump:
		return w.drops(w.chains[r.To], rest)
	case Goto:
		return w.drops(w.chains[r.To], after)
	}
	return rest()
}

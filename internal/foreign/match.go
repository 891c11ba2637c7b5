package foreign

import (
	"net/netip"
	"slices"
	"strings"
)

// An answer is whether a packet matches.
type answer int

// The answers, so ordered that the answer to "all of them" is the least.
const (
	no answer = iota
	perhaps
	yes
)

func sure(is bool) answer {
	if is {
		return yes
	}
	return no
}

// unless turns an answer round if not is set.
func (a answer) unless(not bool) answer {
	if not {
		return yes - a
	}
	return a
}

// A Match is a condition of a rule.
type Match interface{ against(p packet) answer }

// A Name matches a link's name.
type Name struct {
	Text   string
	Prefix bool // everything that begins with Text
}

func (n Name) matches(s string) bool {
	return s == n.Text || n.Prefix && strings.HasPrefix(s, n.Text)
}

type (
	// In matches the link that a packet came in by, Out the one it leaves by.
	In struct {
		Names []Name
		Not   bool
	}
	Out In

	// State matches if any of the bits is set: the conntrack states of
	// nf_conntrack_common.h, and DNAT.
	State struct {
		Bits uint32
		Not  bool
	}

	// Source and Destination match addresses.
	Source struct {
		Prefixes []netip.Prefix
		Not      bool
	}
	Destination Source

	// Protocol matches the protocol above IP.
	Protocol struct {
		Numbers []uint8
		Not     bool
	}

	// Version matches IPv4 or IPv6.
	Version struct{ IPv6, Not bool }

	// Unknown is a condition that is not understood.
	Unknown struct{}
)

// Bits of a State.
const (
	Invalid     = 1 << 0
	Established = 1 << 1
	Related     = 1 << 2
	New         = 1 << 3
	Untracked   = 1 << 6
	// DNAT is set for connections of published ports; the kernel keeps it
	// apart from the states.
	DNAT = 1 << 16
)

func (m In) against(p packet) answer  { return named(m.Names, p.in).unless(m.Not) }
func (m Out) against(p packet) answer { return named(m.Names, p.out).unless(m.Not) }

func named(names []Name, s string) answer {
	return sure(slices.ContainsFunc(names, func(n Name) bool { return n.matches(s) }))
}

func (m State) against(p packet) answer { return sure(m.Bits&p.state != 0).unless(m.Not) }

func (m Source) against(p packet) answer { return inside(m.Prefixes, p.source, p.ipv6).unless(m.Not) }

func (m Destination) against(p packet) answer {
	return inside(m.Prefixes, p.destination, p.ipv6).unless(m.Not)
}

// inside reports whether every address of what lies in one of the prefixes. If
// what is not valid, the address is not known.
func inside(prefixes []netip.Prefix, what netip.Prefix, ipv6 bool) answer {
	out := no
	for _, p := range prefixes {
		switch {
		case p.Addr().Is6() != ipv6:
		case p.Bits() == 0, what.IsValid() && p.Bits() <= what.Bits() && p.Contains(what.Addr()):
			return yes
		case !what.IsValid() || p.Overlaps(what):
			out = perhaps
		}
	}
	return out
}

func (m Protocol) against(p packet) answer {
	return sure(slices.Contains(m.Numbers, p.protocol)).unless(m.Not)
}

func (m Version) against(p packet) answer { return sure(m.IPv6 == p.ipv6).unless(m.Not) }

func (Unknown) against(packet) answer { return perhaps }

// answers is the answer of a whole rule.
func (r Rule) answers(p packet) answer {
	out := yes
	for _, m := range r.Matches {
		out = min(out, m.against(p))
	}
	return out
}

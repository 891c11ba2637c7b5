// Package foreign tells what the firewalls of other tools do to the traffic
// that Berth allows: in nf_tables an accept ends only its own chain, so a chain
// of somebody else's may still drop. It edits nothing; it says what would cure.
//
// It reads no kernel: tables are handed to it.
package foreign

import (
	"fmt"
	"slices"
	"strings"
)

// A Hook is where a base chain sees packets.
type Hook string

// The hooks that matter here; a chain without one is only jumped to.
const (
	None    Hook = ""
	Forward Hook = "forward"
	Input   Hook = "input"
)

// A Table is a table of another tool.
type Table struct {
	Family string // "ip", "ip6", "inet", "bridge"
	Name   string
	Legacy bool // of iptables-legacy, outside nf_tables
	Chains []Chain
}

// A Chain is one of its chains.
type Chain struct {
	Name   string
	Hook   Hook
	Drop   bool // its policy
	Rules  []Rule
	Number int // of rules, also where they were not read
}

// A Verdict is what a rule does with a packet that it matches.
type Verdict string

// The verdicts. A reject is a Drop. Next goes on to the next rule.
const (
	Next   Verdict = ""
	Accept Verdict = "accept"
	Drop   Verdict = "drop"
	Return Verdict = "return"
	Jump   Verdict = "jump"
	Goto   Verdict = "goto"
)

// A Rule is a rule as far as it is understood.
type Rule struct {
	IIF, OIF *Name // nil: any
	// States is a bit set of conntrack states (nf_conntrack_common.h); 0: any.
	States uint32
	// DNAT says that only connections of published ports match.
	DNAT bool
	// Opaque says that it matches on something else too: whether it matches
	// is not known.
	Opaque  bool
	Verdict Verdict
	To      string // of a Jump or Goto
}

// A Name matches a link's name.
type Name struct {
	Text   string
	Prefix bool // everything that begins with Text
	Not    bool
}

func (n *Name) matches(s string) bool {
	if n == nil {
		return true
	}
	is := s == n.Text || n.Prefix && strings.HasPrefix(s, n.Text)
	return is != n.Not
}

// A Network is what must get through.
type Network struct {
	Bridge     string
	Internal   bool
	IPv4, IPv6 bool
}

// Bridged says for which families bridged packets pass the IP hooks
// (br_netfilter).
type Bridged struct{ IPv4, IPv6 bool }

// An Obstacle is a chain that drops what a network needs.
type Obstacle struct {
	Who, Where, What, Cure string
}

// conntrack states.
const stateNew = 8

// A packet is what is tried against the chains.
type packet struct {
	what     string
	iif, oif string
	state    uint32
	dnat     bool
}

// elsewhere stands for a link that no rule names.
const elsewhere = "\x00elsewhere"

func packets(n Network, bridged bool) []packet {
	var out []packet
	if !n.Internal {
		out = append(out,
			packet{"the way out", n.Bridge, elsewhere, stateNew, false},
			packet{"published ports", elsewhere, n.Bridge, stateNew, true})
	}
	if bridged {
		out = append(out, packet{"neighbours of one network", n.Bridge, n.Bridge, stateNew, false})
	}
	return out
}

// Obstacles returns the chains that surely drop what networks need, one for
// each chain and network.
func Obstacles(tables []Table, networks []Network, b Bridged) []Obstacle {
	var out []Obstacle
	for _, t := range tables {
		for _, c := range t.Chains {
			if c.Hook != Forward || t.Family == "bridge" {
				continue
			}
			for _, n := range networks {
				bridged := b.IPv4
				if t.Family == "ip6" {
					bridged = b.IPv6
				}
				if t.Family == "ip" && !n.IPv4 || t.Family == "ip6" && !n.IPv6 {
					continue
				}
				var dropped []string
				for _, p := range packets(n, bridged) {
					if t.walk(c, p, 0) == Drop {
						dropped = append(dropped, p.what)
					}
				}
				if len(dropped) > 0 {
					out = append(out, t.obstacle(c, n, dropped))
				}
			}
		}
	}
	return out
}

// deepest bounds jumps, as the kernel does.
const deepest = 16

// walk returns Drop only if the packet is surely dropped: what a rule does
// that is not understood is in the packet's favour.
func (t Table) walk(c Chain, p packet, depth int) Verdict {
	v := t.rules(c, p, depth)
	if c.Hook == None || v == Accept || v == Drop {
		return v
	}
	if c.Drop {
		return Drop
	}
	return Accept
}

func (t Table) rules(c Chain, p packet, depth int) Verdict {
	if depth > deepest {
		return Accept
	}
	for _, r := range c.Rules {
		if !r.IIF.matches(p.iif) || !r.OIF.matches(p.oif) || r.States != 0 && r.States&p.state == 0 || r.DNAT && !p.dnat {
			continue
		}
		v := r.Verdict
		if v == Jump || v == Goto {
			i := slices.IndexFunc(t.Chains, func(c Chain) bool { return c.Name == r.To })
			if i < 0 {
				continue
			}
			sub := t.rules(t.Chains[i], p, depth+1)
			if sub == Next && v == Goto {
				sub = Return
			}
			v = sub
		}
		if r.Opaque {
			if v == Accept || v == Return {
				return Accept // it might
			}
			continue
		}
		switch v {
		case Accept, Drop:
			return v
		case Return:
			if r.Verdict == Return || r.Verdict == Goto {
				return Next
			}
		}
	}
	return Next
}

func (t Table) has(prefix string) bool {
	return slices.ContainsFunc(t.Chains, func(c Chain) bool { return strings.HasPrefix(c.Name, prefix) })
}

// obstacle says who drops and what cures it, in the tool's own words.
func (t Table) obstacle(c Chain, n Network, dropped []string) Obstacle {
	o := Obstacle{Where: t.Family + " " + t.Name + " " + c.Name, What: strings.Join(dropped, ", ") + " (" + n.Bridge + ")"}
	if c.Drop {
		o.Where += " policy drop"
	}
	tool := "iptables"
	if t.Family == "ip6" {
		tool = "ip6tables"
	}
	if t.Legacy {
		tool += "-legacy"
	}
	insert := func(chain string) string {
		return fmt.Sprintf("%[1]s -I %[2]s -i %[3]s -j ACCEPT && %[1]s -I %[2]s -o %[3]s -j ACCEPT", tool, chain, n.Bridge)
	}
	switch iptables := t.Legacy || (t.Family == "ip" || t.Family == "ip6") && t.Name == "filter" && c.Name == "FORWARD"; {
	case t.Name == "firewalld":
		o.Who, o.Cure = "firewalld", fmt.Sprintf("firewall-cmd --permanent --zone=trusted --add-interface=%s && firewall-cmd --reload", n.Bridge)
	case iptables && t.has("DOCKER-USER"):
		o.Who, o.Cure = "Docker", insert("DOCKER-USER")
	case iptables && (t.has("ufw-") || t.has("ufw6-")):
		o.Who, o.Cure = "ufw", fmt.Sprintf("ufw route allow in on %[1]s && ufw route allow out on %[1]s", n.Bridge)
	case iptables:
		o.Who, o.Cure = tool, insert("FORWARD")
	default:
		o.Who = "nftables table " + t.Family + " " + t.Name
		o.Cure = fmt.Sprintf("nft insert rule %[1]s %[2]s %[3]s iifname %[4]s accept && nft insert rule %[1]s %[2]s %[3]s oifname %[4]s accept", t.Family, t.Name, c.Name, n.Bridge)
	}
	return o
}

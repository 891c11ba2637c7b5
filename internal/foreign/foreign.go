// Package foreign tells what the firewalls of other tools do to the traffic
// that Berth allows: in nf_tables an accept ends only its own chain, so a chain
// of somebody else's may still drop. It edits nothing; it says what would cure.
//
// It claims only what is sure. Where a rule is not understood, both is tried:
// that it matches and that it does not.
//
// It reads no kernel: tables are handed to it.
package foreign

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// A Hook is where a base chain sees packets.
type Hook string

// The hooks; a chain without one is only jumped to.
const (
	None        Hook = ""
	Prerouting  Hook = "prerouting"
	Input       Hook = "input"
	Forward     Hook = "forward"
	Output      Hook = "output"
	Postrouting Hook = "postrouting"
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
	Name     string
	Hook     Hook
	Type     string // of a base chain: "filter", "nat", "route"
	Priority int
	Drop     bool // its policy
	Rules    []Rule
}

// filters reports whether the chain decides what passes a hook.
func (c Chain) filters(h Hook) bool { return c.Hook == h && c.Type == "filter" }

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
	Matches []Match // all must match; what is not understood is an Unknown
	Verdict Verdict
	To      string // of a Jump or Goto
}

// A Network is what must get through.
type Network struct {
	Bridge     string
	Internal   bool
	HostDeny   bool // the host's own services are closed to it
	IPv4, IPv6 bool
	// Subnets are its addresses. Without them a rule about addresses is not
	// understood.
	Subnets []netip.Prefix
	// Uplinks are the links of the host's default routes. Without them a link
	// is taken that no rule names.
	Uplinks []string
}

// Bridged says for which families bridged packets pass the IP hooks
// (br_netfilter).
type Bridged struct{ IPv4, IPv6 bool }

// An Obstacle is a chain that drops what networks need. Cure is the commands for
// all of them.
type Obstacle struct {
	Who, Where, What, Cure string
}

// Obstacles returns the chains that surely drop what networks need.
func Obstacles(tables []Table, networks []Network, b Bridged) []Obstacle {
	var out []Obstacle
	for _, t := range tables {
		for _, c := range t.Chains {
			if o := t.obstacle(c, networks, b); o.What != "" {
				out = append(out, o)
			}
		}
	}
	return out
}

// obstacle says what of the networks' needs a chain drops, in What nothing if
// that is not sure of any.
func (t Table) obstacle(c Chain, networks []Network, b Bridged) Obstacle {
	var o Obstacle
	var whats, cures []string
	bridges := map[string][]string{} // by what is dropped
	for _, n := range networks {
		what := strings.Join(t.dropped(c, n, b), ", ")
		if what == "" {
			continue
		}
		if bridges[what] == nil {
			whats = append(whats, what)
		}
		bridges[what] = append(bridges[what], n.Bridge)
		who, cure := t.cure(c, n)
		o.Who = who
		cures = append(cures, cure)
	}
	for i, what := range whats {
		whats[i] = what + " (" + strings.Join(bridges[what], ", ") + ")"
	}
	o.What, o.Cure = strings.Join(whats, "; "), strings.Join(cures, " && ")
	o.Where = t.Family + " " + t.Name + " " + c.Name
	if c.Drop {
		o.Where += " policy drop"
	}
	return o
}

// dropped names what of a network's needs a chain surely drops.
func (t Table) dropped(c Chain, n Network, b Bridged) []string {
	if t.Family == "bridge" || !c.filters(Forward) && !c.filters(Input) {
		return nil
	}
	both := t.Family == "inet" && n.IPv4 && n.IPv6
	families := map[string][]string{} // by what is needed
	var whats []string
	for _, need := range needs(n, b) {
		version := map[bool]string{false: "IPv4", true: "IPv6"}[need.ipv6]
		if need.hook != c.Hook || t.Family == "ip" && need.ipv6 || t.Family == "ip6" && !need.ipv6 {
			continue
		}
		if slices.ContainsFunc(need.packets, func(p packet) bool { return !t.drops(c, p) }) {
			continue
		}
		if families[need.what] == nil {
			whats = append(whats, need.what)
		}
		families[need.what] = append(families[need.what], version)
	}
	for i, what := range whats {
		if f := families[what]; both && len(f) == 1 {
			whats[i] += " over " + f[0]
		}
	}
	return whats
}

func (t Table) has(prefix string) bool {
	return slices.ContainsFunc(t.Chains, func(c Chain) bool { return strings.HasPrefix(c.Name, prefix) })
}

// cure says whose a chain is that drops, and what cures it for a network, in
// the tool's own words.
func (t Table) cure(c Chain, n Network) (who, cure string) {
	tool := "iptables"
	if t.Family == "ip6" {
		tool = "ip6tables"
	}
	if t.Legacy {
		tool += "-legacy"
	}
	iptables := t.Legacy || (t.Family == "ip" || t.Family == "ip6") && t.Name == "filter" && (c.Name == "FORWARD" || c.Name == "INPUT")
	forward := c.Hook == Forward
	switch {
	case t.Name == "firewalld":
		who, cure = "firewalld", "firewall-cmd --permanent --zone=trusted --add-interface="+n.Bridge+" && firewall-cmd --reload"
	case iptables && forward && t.has("DOCKER-USER"):
		who, cure = "Docker", both("%s -I DOCKER-USER -%s %s -j ACCEPT", tool, "i", "o", n.Bridge)
	case iptables && t.has("ufw") && forward: // ufw-, and ufw6- for IPv6
		who, cure = "ufw", both("%s route allow %s on %s", "ufw", "in", "out", n.Bridge)
	case iptables && t.has("ufw"):
		who, cure = "ufw", "ufw allow in on "+n.Bridge
	case iptables && forward:
		who, cure = tool, both("%s -I FORWARD -%s %s -j ACCEPT", tool, "i", "o", n.Bridge)
	case iptables:
		who, cure = tool, fmt.Sprintf("%s -I INPUT -i %s -j ACCEPT", tool, n.Bridge)
	case forward:
		who, cure = "nftables table "+t.Family+" "+t.Name, both("%s %sifname %s accept", t.insert(c), "i", "o", n.Bridge)
	default:
		who, cure = "nftables table "+t.Family+" "+t.Name, fmt.Sprintf("%s iifname %s accept", t.insert(c), n.Bridge)
	}
	return who, cure
}

func (t Table) insert(c Chain) string {
	return "nft insert rule " + t.Family + " " + t.Name + " " + c.Name
}

// both writes a command for each direction.
func both(format, command, in, out, bridge string) string {
	return fmt.Sprintf(format, command, in, bridge) + " && " + fmt.Sprintf(format, command, out, bridge)
}

package foreign

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func names(s ...string) (out []Name) {
	for _, n := range s {
		text, prefix := strings.CutSuffix(n, "*")
		out = append(out, Name{text, prefix})
	}
	return out
}

func in(s ...string) Match            { return In{Names: names(s...)} }
func out(s ...string) Match           { return Out{Names: names(s...)} }
func prefix(s string) []netip.Prefix  { return []netip.Prefix{netip.MustParsePrefix(s)} }
func rule(v Verdict, m ...Match) Rule { return Rule{Matches: m, Verdict: v} }
func jump(to string, m ...Match) Rule { return Rule{Matches: m, Verdict: Jump, To: to} }

var network = Network{
	Bridge: "bt-a", IPv4: true, Subnets: prefix("10.9.0.0/24"), Uplinks: []string{"eth0"}, HostDeny: true,
}

// TestWhatAChainDrops: a chain with a policy and rules, and what it takes from
// a network.
func TestWhatAChainDrops(t *testing.T) {
	const wayOut, answers, ports, neighbours = "the way out", "answers from outside", "published ports", "neighbours of one network"
	established := rule(Accept, State{Bits: Established | Related})
	all := []string{wayOut, answers, ports, neighbours}
	for _, tt := range []struct {
		name  string
		rules []Rule
		sub   []Rule // of chain "sub"
		want  []string
	}{
		{"policy alone", nil, nil, all},
		{"established", []Rule{established}, nil, []string{wayOut, ports, neighbours}},
		{"published", []Rule{established, rule(Accept, State{Bits: DNAT})}, nil, []string{wayOut, neighbours}},
		{"cured", []Rule{rule(Accept, in("bt-a")), rule(Accept, out("bt-a"))}, nil, nil},
		{"cured by a prefix", []Rule{rule(Accept, in("bt-*")), rule(Accept, out("bt-*"))}, nil, nil},
		{"another's link", []Rule{rule(Accept, in("docker0"))}, nil, all},
		{"the uplink by its name", []Rule{rule(Accept, in("eth0"), out("bt-a"))}, nil, []string{wayOut, neighbours}},
		{"all but a link", []Rule{rule(Accept, In{Names: names("docker0"), Not: true})}, nil, nil},
		{"our addresses", []Rule{rule(Accept, in("bt-a"), Source{Prefixes: prefix("10.0.0.0/8")})}, nil, []string{answers, ports}},
		{"some of our addresses", []Rule{rule(Accept, in("bt-a"), Source{Prefixes: prefix("10.9.0.7/32")})}, nil, []string{answers, ports}},
		{"addresses that may be of anybody outside", []Rule{rule(Accept, Source{Prefixes: prefix("10.0.0.0/8")})}, nil, nil},
		{"all but our addresses", []Rule{rule(Drop, Source{Prefixes: prefix("10.9.0.0/16"), Not: true}), rule(Accept)}, nil, nil},
		{"other addresses", []Rule{rule(Accept, Destination{Prefixes: prefix("172.17.0.2/32")}, out("docker0"))}, nil, all},
		{"no TCP", []Rule{rule(Accept, Protocol{Numbers: []uint8{1, 17}})}, nil, all},
		{"TCP", []Rule{rule(Accept, Protocol{Numbers: []uint8{6}})}, nil, nil},
		{"IPv6", []Rule{rule(Accept, Version{IPv6: true})}, nil, all},
		{"perhaps accepted", []Rule{rule(Accept, Unknown{})}, nil, nil},
		{"perhaps dropped", []Rule{rule(Drop, Unknown{}), rule(Accept)}, nil, nil},
		{"perhaps dropped, else dropped", []Rule{rule(Drop, Unknown{}), rule(Drop)}, nil, all},
		{"surely elsewhere, perhaps accepted", []Rule{rule(Accept, Unknown{}, in("docker0"))}, nil, all},
		{"jump that returns", []Rule{jump("sub")}, []Rule{rule(Return), rule(Accept)}, all},
		{"jump that accepts", []Rule{jump("sub")}, []Rule{rule(Accept, in("bt-a"))}, []string{answers, ports}},
		{"jump that perhaps returns before a drop", []Rule{jump("sub"), rule(Accept)}, []Rule{rule(Return, Unknown{}), rule(Drop)}, nil},
		{"jump that perhaps returns before a drop, to a drop", []Rule{jump("sub")}, []Rule{rule(Return, Unknown{}), rule(Drop)}, all},
		{"perhaps a jump that accepts", []Rule{jump("sub", Unknown{})}, []Rule{rule(Accept)}, nil},
		{"goto ends the chain", []Rule{{Verdict: Goto, To: "sub"}, rule(Accept)}, nil, all},
		{"loop", []Rule{jump("sub")}, []Rule{jump("sub")}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table := Table{Family: "ip", Name: "filter", Chains: []Chain{
				{Name: "FORWARD", Hook: Forward, Type: "filter", Drop: true, Rules: tt.rules}, {Name: "sub", Rules: tt.sub},
			}}
			var got []string
			for _, o := range Obstacles([]Table{table}, []Network{network}, Bridged{IPv4: true}) {
				got = strings.Split(strings.TrimSuffix(o.What, " (bt-a)"), ", ")
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func TestCures(t *testing.T) {
	forward := Chain{Name: "FORWARD", Hook: Forward, Type: "filter", Drop: true}
	input := Chain{Name: "INPUT", Hook: Input, Type: "filter", Drop: true}
	const other = "nft insert rule inet fw f "
	for _, tt := range []struct {
		table            Table
		who, where, cure string
	}{
		{Table{Family: "ip", Name: "filter", Chains: []Chain{forward}}, "iptables", "ip filter FORWARD policy drop",
			"iptables -I FORWARD -i bt-a -j ACCEPT && iptables -I FORWARD -o bt-a -j ACCEPT"},
		{Table{Family: "ip", Name: "filter", Chains: []Chain{input}}, "iptables", "ip filter INPUT policy drop",
			"iptables -I INPUT -i bt-a -j ACCEPT"},
		{Table{Family: "ip", Name: "filter", Legacy: true, Chains: []Chain{forward}}, "iptables-legacy", "ip filter FORWARD policy drop",
			"iptables-legacy -I FORWARD -i bt-a -j ACCEPT && iptables-legacy -I FORWARD -o bt-a -j ACCEPT"},
		{Table{Family: "ip6", Name: "filter", Chains: []Chain{forward}}, "ip6tables", "ip6 filter FORWARD policy drop",
			"ip6tables -I FORWARD -i bt-a -j ACCEPT && ip6tables -I FORWARD -o bt-a -j ACCEPT"},
		{Table{Family: "ip", Name: "filter", Chains: []Chain{forward, {Name: "DOCKER-USER"}}}, "Docker", "ip filter FORWARD policy drop",
			"iptables -I DOCKER-USER -i bt-a -j ACCEPT && iptables -I DOCKER-USER -o bt-a -j ACCEPT"},
		{Table{Family: "ip", Name: "filter", Chains: []Chain{forward, {Name: "ufw-before-forward"}}}, "ufw", "ip filter FORWARD policy drop",
			"ufw route allow in on bt-a && ufw route allow out on bt-a"},
		{Table{Family: "ip6", Name: "filter", Chains: []Chain{input, {Name: "ufw6-before-input"}}}, "ufw", "ip6 filter INPUT policy drop",
			"ufw allow in on bt-a"},
		{Table{Family: "inet", Name: "firewalld", Chains: []Chain{{Name: "filter_FORWARD", Hook: Forward, Type: "filter", Rules: []Rule{rule(Drop)}}}},
			"firewalld", "inet firewalld filter_FORWARD", "firewall-cmd --permanent --zone=trusted --add-interface=bt-a && firewall-cmd --reload"},
		{Table{Family: "inet", Name: "fw", Chains: []Chain{{Name: "f", Hook: Forward, Type: "filter", Drop: true}}}, "nftables table inet fw", "inet fw f policy drop",
			other + "iifname bt-a accept && " + other + "oifname bt-a accept"},
		{Table{Family: "inet", Name: "fw", Chains: []Chain{{Name: "f", Hook: Input, Type: "filter", Drop: true}}}, "nftables table inet fw", "inet fw f policy drop",
			other + "iifname bt-a accept"},
	} {
		n := Network{Bridge: "bt-a", IPv4: true, IPv6: true}
		got := Obstacles([]Table{tt.table}, []Network{n}, Bridged{})
		if len(got) != 1 || got[0].Who != tt.who || got[0].Where != tt.where || got[0].Cure != tt.cure {
			t.Errorf("%s %s: %+v", tt.table.Family, tt.table.Name, got)
		}
	}
}

// TestOneObstacleForManyNetworks: a chain is told of once, with all bridges and
// a cure for each.
func TestOneObstacleForManyNetworks(t *testing.T) {
	table := Table{Family: "ip", Name: "filter", Chains: []Chain{{Name: "INPUT", Hook: Input, Type: "filter", Drop: true}}}
	want := []Obstacle{{
		Who: "iptables", Where: "ip filter INPUT policy drop",
		What: "the host's own services (bt-a, bt-b)",
		Cure: "iptables -I INPUT -i bt-a -j ACCEPT && iptables -I INPUT -i bt-b -j ACCEPT",
	}}
	networks := []Network{{Bridge: "bt-a", IPv4: true}, {Bridge: "bt-b", IPv4: true}, {Bridge: "bt-c", IPv4: true, HostDeny: true}}
	if d := cmp.Diff(want, Obstacles([]Table{table}, networks, Bridged{})); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func TestNoObstacleWhereNothingIsNeeded(t *testing.T) {
	tables := []Table{
		{Family: "ip", Name: "filter", Chains: []Chain{{Name: "FORWARD", Hook: Forward, Type: "filter", Drop: true}, {Name: "INPUT", Hook: Input, Type: "filter", Drop: true}}},
		{Family: "bridge", Name: "b", Chains: []Chain{{Name: "f", Hook: Forward, Type: "filter", Drop: true}}},
		{Family: "ip", Name: "nat", Chains: []Chain{{Name: "PREROUTING", Hook: Prerouting, Type: "nat", Drop: true}}},
	}
	for _, n := range []Network{
		{Bridge: "bt-a", IPv6: true},
		{Bridge: "bt-a", IPv4: true, Internal: true, HostDeny: true},
	} {
		if got := Obstacles(tables, []Network{n}, Bridged{IPv6: true}); len(got) > 0 {
			t.Errorf("%+v: %+v", n, got)
		}
	}
}

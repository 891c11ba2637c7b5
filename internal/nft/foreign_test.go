package nft

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"berth/internal/foreign"
	"berth/internal/nettest"
	"berth/internal/plan"
)

var needy = foreign.Network{
	Bridge: "bt-a", IPv4: true, IPv6: true, Uplinks: []string{"uplink0"},
	Subnets: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24"), netip.MustParsePrefix("fd00:9::/64")},
}

// obstacles loads a firewall and returns what it drops: "who: what" by chain.
func obstacles(t *testing.T, h *nettest.Host) (out []string) {
	t.Helper()
	tables, err := dial(t, h).Foreign()
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range foreign.Obstacles(tables, []foreign.Network{needy}, foreign.Bridged{IPv4: true, IPv6: true}) {
		out = append(out, o.Who+", "+o.Where+": "+strings.TrimSuffix(o.What, " (bt-a)"))
	}
	slices.Sort(out)
	return out
}

const everyNeed = "the way out, answers from outside, published ports, neighbours of one network"

// TestObstaclesInNFT loads what tools and people write.
func TestObstaclesInNFT(t *testing.T) {
	t.Parallel()
	forward := func(rules ...string) string {
		return "table inet fw { chain f { type filter hook forward priority filter; policy drop; " + strings.Join(rules, "; ") + "; } }"
	}
	said := func(what string) []string { return []string{"nftables table inet fw, inet fw f policy drop: " + what} }
	for _, tt := range []struct {
		name, text string
		want       []string
	}{
		{"policy", forward("counter"), said(everyNeed)},
		{"verdict map of states", forward("ct state vmap { established : accept, related : accept, invalid : drop }"), said("the way out, published ports, neighbours of one network")},
		{"set of states", forward("ct state { established, related } accept", "ct status dnat accept"), said("the way out, neighbours of one network")},
		{"states", forward("ct state established,related accept"), said("the way out, published ports, neighbours of one network")},
		{"no new", forward("ct state != new accept"), said("the way out, published ports, neighbours of one network")},
		{"cured", forward(`iifname "bt-a" accept`, `oifname "bt-a" accept`), nil},
		{"cured by a wildcard", forward(`iifname "bt-*" accept`, `oifname "bt-*" accept`), nil},
		{"cured by a set", forward(`iifname { "x", "bt-a" } accept`, `oifname { "x", "bt-a" } accept`), nil},
		{"by the number of a link", forward(`iif "lo" accept`), said(everyNeed)},
		{"by address", forward("iifname bt-a ip saddr 10.9.0.0/16 accept", "iifname bt-a ip6 saddr fd00:9::/64 accept"), said("answers from outside, published ports")},
		{"by another address", forward("ip saddr 10.8.0.0/16 iifname bt-a accept"), said(everyNeed)},
		{"by an odd prefix", forward("iifname bt-a ip saddr 10.8.0.0/15 accept", "iifname bt-a ip6 saddr fd00:8::/31 accept"), said("answers from outside, published ports")},
		{"of one family", forward("meta nfproto ipv6 accept"), said("the way out over IPv4, answers from outside over IPv4, published ports over IPv4, neighbours of one network over IPv4")},
		{"addresses of one family", forward("iifname bt-a ip saddr 10.9.0.0/24 accept", "oifname bt-a accept"), said("the way out over IPv6")},
		{"of one protocol", forward("meta l4proto { icmp, ipv6-icmp, udp } accept"), said(everyNeed)},
		{"some ports", forward("tcp dport 443 accept"), nil},
		{"some ports, elsewhere", forward("iifname docker0 tcp dport 443 accept"), said(everyNeed)},
		{"what is not read", forward("meta mark 1-5 accept"), nil},
		{"what is not read, dropped", forward("meta mark 1-5 drop"), said(everyNeed)},
		{"a limit", forward("limit rate 1/second accept"), nil},
		{"log", forward(`log prefix "x"`, "meta mark set 7", "counter"), said(everyNeed)},
		{"mark", forward("meta mark 7 accept"), nil},
		{"interval set", "table ip fw { set s { type ipv4_addr; flags interval; elements = { 10.9.0.0/24 }; } chain f { type filter hook forward priority 0; policy drop; ip saddr @s accept; } }", nil},
		{"verdict map of links", "table inet fw { chain g { accept; } chain f { type filter hook forward priority 0; policy drop; iifname vmap { bt-a : jump g, x : drop }; } }", said("answers from outside, published ports")},
		{"reject by rule", "table inet fw { chain f { type filter hook forward priority 0; iifname bt-a oifname != bt-a reject; } }", []string{"nftables table inet fw, inet fw f: the way out"}},
		{"mangle table", "table ip m { chain f { type filter hook forward priority mangle; ct state new drop; } }", []string{"nftables table ip m, ip m f: the way out, published ports, neighbours of one network"}},
		{"dormant", "table inet fw { flags dormant; chain f { type filter hook forward priority 0; policy drop; } }", nil},
		{"input", "table inet fw { chain i { type filter hook input priority 0; policy drop; iif lo accept; ct state established accept; } }", []string{"nftables table inet fw, inet fw i policy drop: the host's own services"}},
		{"input with a service", "table inet fw { chain i { type filter hook input priority 0; policy drop; tcp dport 22 accept; } }", nil},
		{"bridge family", "table bridge fw { chain f { type filter hook forward priority 0; policy drop; } }", nil},
		{"firewalld", firewalld, []string{"firewalld, inet firewalld filter_FORWARD: the way out, neighbours of one network"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := nettest.NewHost(t)
			nftLoad(t, h, tt.text)
			if d := cmp.Diff(tt.want, obstacles(t, h)); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func nftLoad(t *testing.T, h *nettest.Host, text string) {
	t.Helper()
	// nft 1.0.6 wants a line of its own for what follows a block.
	text = strings.ReplaceAll(text, "; }", ";\n}\n") + "\n"
	file := t.TempDir() + "/fw.nft"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	h.Run(t, "nft", "-f", file)
}

// firewalld is the shape of its forward chain: zones by link, a reject at the
// end.
const firewalld = `table inet firewalld {
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
		ct state { established, related } accept
		ct status dnat accept
		iifname "lo" accept
		ip6 daddr { ::/96, ::ffff:0.0.0.0/96 } log prefix "no" reject with icmpv6 type addr-unreachable
		jump zones
		ct state { invalid } drop
		reject with icmpx type admin-prohibited
	}
	chain zones {
		iifname "uplink0" oifname "uplink0" goto public
		iifname "uplink0" goto public
	}
	chain public {
		meta l4proto { icmp, ipv6-icmp } accept
	}
}
`

// iptablesText is written for iptables-restore: as Docker, ufw and people
// write it.
var iptablesText = map[string]struct {
	text string
	want []string // without "who, ip filter"
}{
	"policy": {"*filter\n:INPUT ACCEPT\n:FORWARD DROP\n:OUTPUT ACCEPT\nCOMMIT\n",
		[]string{" FORWARD policy drop: " + everyNeed}},
	"people": {`*filter
:INPUT DROP
:FORWARD DROP
:OUTPUT ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -p icmp -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -m comment --comment "answers"
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment "answers" -j ACCEPT
-A FORWARD -m limit --limit 3/min -j LOG --log-prefix "no "
-A FORWARD -i docker+ -j ACCEPT
-A FORWARD ! -i bt-a -o docker0 -j ACCEPT
-A FORWARD -s 10.8.0.0/16 ! -d 10.8.0.0/16 -i tun0 -j ACCEPT
COMMIT
`, []string{" FORWARD policy drop: the way out, published ports, neighbours of one network", " INPUT policy drop: the host's own services"}},
	"dnat state": {`*filter
:FORWARD DROP
-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT
-A FORWARD -i bt-a ! -o bt-a -p udp -j ACCEPT
-A FORWARD -i bt-a -s 10.9.0.0/24 -o bt-a -j ACCEPT
COMMIT
`, []string{" FORWARD policy drop: the way out, answers from outside"}},
	"reject": {`*filter
:FORWARD ACCEPT
:INPUT ACCEPT
-A FORWARD ! -s 10.9.0.0/24 -p tcp -m tcp --dport 22 -j ACCEPT
-A FORWARD -i bt-a -o bt-a -j ACCEPT
-A FORWARD -i bt-a -j REJECT --reject-with icmp-port-unreachable
COMMIT
`, []string{" FORWARD: the way out"}},
	"goto": {`*filter
:FORWARD DROP
:A -
:B -
-A FORWARD -i bt-a -g A
-A FORWARD -j ACCEPT
-A A -m addrtype --src-type LOCAL -j RETURN
-A A -o bt-a -j B
-A B -j ACCEPT
COMMIT
`, []string{" FORWARD policy drop: the way out"}},
	"cured": {`*filter
:FORWARD DROP
-A FORWARD -i bt-a -j ACCEPT
-A FORWARD -o bt-a -j ACCEPT
COMMIT
`, nil},
	"docker": {`*filter
:INPUT ACCEPT
:FORWARD DROP
:OUTPUT ACCEPT
:DOCKER -
:DOCKER-ISOLATION-STAGE-1 -
:DOCKER-ISOLATION-STAGE-2 -
:DOCKER-USER -
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
`, []string{" FORWARD policy drop: " + everyNeed}},
	"ufw": {`*filter
:INPUT DROP
:FORWARD DROP
:OUTPUT ACCEPT
:ufw-before-forward -
:ufw-before-input -
:ufw-not-local -
:ufw-user-forward -
:ufw-user-input -
:ufw-after-logging-forward -
-A INPUT -j ufw-before-input
-A FORWARD -j ufw-before-forward
-A FORWARD -j ufw-after-logging-forward
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-forward -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A ufw-before-forward -j ufw-user-forward
-A ufw-after-logging-forward -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[UFW BLOCK] "
-A ufw-before-input -i lo -j ACCEPT
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-input -m conntrack --ctstate INVALID -j DROP
-A ufw-before-input -p udp -m udp --sport 67 --dport 68 -j ACCEPT
-A ufw-before-input -j ufw-not-local
-A ufw-before-input -d 224.0.0.251/32 -p udp -m udp --dport 5353 -j ACCEPT
-A ufw-before-input -j ufw-user-input
-A ufw-not-local -m addrtype --dst-type LOCAL -j RETURN
-A ufw-not-local -m addrtype --dst-type MULTICAST -j RETURN
-A ufw-not-local -m limit --limit 3/min -j LOG
-A ufw-not-local -j DROP
COMMIT
`, []string{" FORWARD policy drop: the way out, published ports, neighbours of one network", " INPUT policy drop: the host's own services"}},
}

// TestObstaclesInIPTables loads the same text into both kinds of iptables.
func TestObstaclesInIPTables(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"iptables-nft", "iptables-legacy", "ip6tables-legacy"} {
		for name, tt := range iptablesText {
			t.Run(tool+"/"+name, func(t *testing.T) {
				h := nettest.NewHost(t)
				text, family, who := tt.text, "ip", strings.TrimSuffix(tool, "-nft")
				if strings.HasPrefix(tool, "ip6") {
					family = "ip6"
					text = strings.NewReplacer("10.9.0.0/24", "fd00:9::/64", "10.8.0.0/16", "fd00:8::/64", "172.17.0.2/32", "fd00:7::2/128", "224.0.0.251/32", "ff02::fb/128",
						"-p icmp -m icmp --icmp-type 8", "-p ipv6-icmp", "-p icmp", "-p ipv6-icmp", "icmp-port", "icmp6-port").Replace(text)
				}
				file := t.TempDir() + "/rules"
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				h.Run(t, tool+"-restore", file)
				if name == "docker" {
					who = "Docker"
				} else if name == "ufw" {
					who = "ufw"
				}
				var want []string
				for _, w := range tt.want {
					want = append(want, who+", "+family+" filter"+w)
				}
				if d := cmp.Diff(want, obstacles(t, h)); d != "" {
					t.Errorf("-want +got:\n%s", d)
				}
			})
		}
	}
}

// TestQueueMayAccept: who takes a packet from a queue decides.
func TestQueueMayAccept(t *testing.T) {
	u := reader{family: nftables.TableFamilyINet}
	want := []foreign.Rule{{Matches: []foreign.Match{foreign.Unknown{}}, Verdict: foreign.Accept}}
	if d := cmp.Diff(want, u.rules([]any{&expr.Counter{}, unknownExpr{"queue"}})); d != "" {
		t.Error(d)
	}
}

// TestForeignListsBaseChains, of every family and hook, and not ours.
func TestForeignListsBaseChains(t *testing.T) {
	t.Parallel()
	h := nettest.NewHost(t)
	nftLoad(t, h, `
table ip a { chain p { type nat hook prerouting priority dstnat; policy accept; } chain o { type route hook output priority mangle; } chain x { ; } }
table bridge b { chain f { type filter hook forward priority -200; policy drop; } }
table inet c { chain q { type filter hook postrouting priority 7; } }
table netdev d { }
table ip e { chain i { type filter hook input priority 0; accept; } }
`)
	c := dial(t, h)
	apply(t, c, plan.Transaction{Rebuild: true})
	got, err := c.Foreign()
	want := []foreign.Table{
		{Family: "ip", Name: "a", Chains: []foreign.Chain{
			{Name: "p", Hook: foreign.Prerouting, Type: "nat", Priority: -100}, {Name: "o", Hook: foreign.Output, Type: "route", Priority: -150}, {Name: "x"},
		}},
		{Family: "bridge", Name: "b", Chains: []foreign.Chain{{Name: "f", Hook: foreign.Forward, Type: "filter", Priority: -200, Drop: true}}},
		{Family: "inet", Name: "c", Chains: []foreign.Chain{{Name: "q", Hook: foreign.Postrouting, Type: "filter", Priority: 7}}},
		{Family: "ip", Name: "e", Chains: []foreign.Chain{{Name: "i", Hook: foreign.Input, Type: "filter", Rules: []foreign.Rule{{Verdict: foreign.Accept}}}}},
	}
	sort := func(ts []foreign.Table) {
		slices.SortFunc(ts, func(a, b foreign.Table) int { return strings.Compare(a.Name, b.Name) })
	}
	sort(got)
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("%v, -want +got:\n%s", err, d)
	}
}

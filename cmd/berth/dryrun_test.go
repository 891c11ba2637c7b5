package main

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// byHand are changes, one after the other. What begins with "!" is another
// tool's, done on both hosts.
var byHand = []string{
	"network create --subnet 10.1.0.0/24,fd00:1::/64 front",
	"network create --internal --subnet 10.2.0.0/24 inner",
	"network create --opt icc=false --opt host=deny --opt mtu=1400 --ipv4=false --ipv6 quiet",
	"network create --subnet 10.5.0.0/24 --opt address=false --opt promisc=true --opt bridge=seg0 seg",
	"network create --subnet 10.6.0.0/24 --opt open=true --opt hairpin=false --opt default-route=false yard",
	"network create --driver link --ipv6 --subnet 10.3.0.0/24 wire",
	"network create --driver link --opt host=false --subnet 10.4.0.0/24 pair",
	"! ip link add lxcbr0 address 02:00:00:00:00:07 type bridge && ip addr add 10.7.0.1/24 dev lxcbr0 && ip link set lxcbr0 up",
	"network create --opt bridge=lxcbr0 theirs",
	"sandbox create web api quiet1",
	"network connect front web",
	"network connect front api",
	"network connect inner web",
	"network connect --gw-priority 3 --mac-address 02:00:00:00:00:42 --interface q0 quiet web",
	"network connect wire ns1 -p 8083:80",
	"network connect pair web",
	"network connect pair api",
	"network connect theirs path:/run/netns/ns1",
	"! ip link add their1 index 90 type veth peer name found0 netns ns1 && ip link set their1 master lxcbr0 up && ip -n ns1 addr add 10.7.0.99/24 dev found0 && ip -n ns1 link set found0 up",
	"network connect --found --interface found0 --rate-in 5mbit --rate-out 3mbit theirs ns1",
	"network update --interface found0 --rate-out 0 theirs ns1",
	"network disconnect --interface found0 theirs ns1",
	"! ip link del their1",
	"publish web 8080:80 53:53/udp 127.0.0.1:9000-9003:90-93 --network front",
	"publish ns1 8082:80 --network wire",
	"network update wire ns1 --rate-in 8mbit --rate-out 4mbit",
	"network update front web --rate-out 2.5gbit --burst 256kb",
	"network update front web --rate-in 100mbit",
	"publish --replace api 8080:80",
	"publish --replace --cut web 8080:81 --network front",
	"publish api 81",
	"unpublish web 53/udp",
	"network update front web --rate-out 0",
	"network connect front quiet1 --rate-in 1mbit --rate-out 64kbit",
	"network disconnect front quiet1",
	"network disconnect quiet web",
	"network connect seg web",
	"network connect yard api",
	"! nft flush ruleset; ip link set seg0 promisc off; ip -n web link set eth0 down; ip link set bt-front mtu 1300",
	"reconcile",
	"! tc qdisc del dev $(ip -br link show type ifb | head -1 | cut -d- -f1) ingress; ip -n web link del eth0; ip route flush table all proto 98; nft flush map inet berth publish_any4",
	"reconcile",
	"unpublish ns1 --all",
	"network disconnect front web api",
	"network rm --force wire pair seg yard",
	"network rm --force theirs",
	"sandbox rm web",
	"! ip link del lxcbr0",
	"network prune",
	"sandbox rm api quiet1",
}

// answers are what a command says when it is done, behind the script.
var answers = regexp.MustCompile(`(?m)^([0-9a-f]{64}|[a-z0-9]+ [0-9a-f.:/]+( [0-9a-f:/]+)?|[0-9]+/[a-z]+ -> .*|(missing|extra|changed|dead) .*|web|api|quiet1|front|inner|quiet|wire|pair|theirs|seg|yard)\n`)

// TestByHand: with --dry-run nothing changes, not a byte; and what --commands
// prints gives another host, where only it is typed, the same kernel.
func TestByHand(t *testing.T) {
	t.Parallel()
	ours, typed := newVictim(t), newVictim(t)
	before := ours.bytes(t)
	for _, step := range byHand {
		if script, ok := strings.CutPrefix(step, "! "); ok {
			ours.must(t, script)
			typed.must(t, script)
			before = ours.bytes(t)
			continue
		}
		dry := ours.must(t, "berth "+step+" --dry-run 2>/dev/null")
		if diff := cmp.Diff(before, ours.bytes(t)); diff != "" {
			t.Fatalf("%s --dry-run changed something (-before +after):\n%s", step, diff)
		}
		done := ours.must(t, "berth "+step+" --commands 2>/dev/null")
		script := answers.ReplaceAllString(done, "")
		if (script == "") != (dry == "") {
			t.Errorf("%s: tried, it would\n%s\nand then it did\n%s", step, dry, script)
		}
		if out, err := typed.sh("bash -e <<'END_OF_SCRIPT'\n" + script + "\nEND_OF_SCRIPT"); err != nil {
			t.Fatalf("%s, typed: %v\n%s\n%s", step, err, out, script)
		}
		before = ours.bytes(t)
		if diff := cmp.Diff(ours.kernel(t), typed.kernel(t)); diff != "" {
			t.Fatalf("%s: typed, it is not the same (-berth +typed):\n%s\n%s", step, diff, script)
		}
		ours.must(t, "berth check")
	}
	for who, v := range map[string]*victim{"berth": ours, "who typed": typed} {
		if left, err := v.Leftovers(); err != nil || !slices.Equal(left, []string{"namespace ns1"}) {
			t.Errorf("%s left %q, %v", who, left, err)
		}
	}
}

// bytes is everything that a dry run must not change.
func (v *victim) bytes(t *testing.T) []string {
	t.Helper()
	out := v.must(t, `nft -a list ruleset; ip -o link | cut -d: -f1,2; ls -R /run /var/lib/berth; find /run/berth /var/lib/berth -type f 2>/dev/null | xargs -r sha256sum`)
	return append(v.kernel(t), strings.Split(out, "\n")...)
}

// kernel is what a host's kernel holds, without what is its own: numbers of
// links, addresses by chance, counters.
func (v *victim) kernel(t *testing.T) []string {
	t.Helper()
	var all []string
	add := func(where, text string) {
		for line := range strings.Lines(text) {
			line = strings.Join(strings.Fields(line), " ")
			if line != "" && !strings.Contains(line, "fe80:") && !strings.Contains(line, "ff00::/8") {
				all = append(all, where+": "+line)
			}
		}
	}
	// The order of a set's elements is no one's.
	rules := v.must(t, "nft list ruleset")
	rules = regexp.MustCompile(`packets \d+ bytes \d+`).ReplaceAllString(rules, "")
	add("nft", strings.NewReplacer("elements = {", "\n", ",", "\n", "}", "\n").Replace(rules))
	places := strings.Fields("host " + v.must(t, "ls /run/netns"))
	for _, where := range places {
		ip, in := "ip", ""
		if where != "host" {
			ip, in = "ip -n "+where, "ip netns exec "+where+" "
		}
		// The first line is JSON.
		links, out, _ := strings.Cut(v.must(t, ip+" -d -j link; "+ip+" -br addr; "+ip+" rule; "+ip+" -6 rule; "+ip+" route show table all; "+
			ip+" -6 route show table all; "+in+"tc qdisc; for l in $("+ip+" -br link show type ifb | cut -d' ' -f1); do "+in+"tc filter show dev ${l%-out} ingress | grep -v index; done; "+in+"bash -c 'cd /proc/sys/net; grep -s . ipv4/ip_forward ipv[46]/conf/*/{forwarding,route_localnet,accept_ra,accept_redirects,accept_dad,disable_ipv6,rp_filter,arp_ignore}; true'"), "\n")
		v.links(t, where, links, add)
		out = regexp.MustCompile(`@if\d+| linkdown|@bt\S+`).ReplaceAllString(out, "")
		add(where, regexp.MustCompile(`(?m) (UP|DOWN|LOWERLAYERDOWN|UNKNOWN) `).ReplaceAllString(out, " "))
	}
	slices.Sort(all)
	return all
}

// links adds what of each link does not differ by chance.
func (v *victim) links(t *testing.T, where, text string, add func(where, text string)) {
	t.Helper()
	var links []struct {
		Ifname, Ifalias, Address, Master, Group string
		Flags                                   []string
		MTU                                     int
		Inet6                                   string `json:"inet6_addr_gen_mode"`
		Linkinfo                                struct {
			Kind  string         `json:"info_kind"`
			Slave map[string]any `json:"info_slave_data"`
		}
	}
	if err := json.Unmarshal([]byte(text), &links); err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Linkinfo.Kind == "ifb" || l.Linkinfo.Kind == "veth" && (where == "host" || l.Ifalias == "") {
			l.Address = "" // the kernel's choice
		}
		up := slices.Contains(l.Flags, "UP")
		add(where, fmt.Sprintf("link %s %s alias %q address %s mtu %d master %q group %s up %v addrgen %s hairpin %v isolated %v",
			l.Ifname, l.Linkinfo.Kind, l.Ifalias, l.Address, l.MTU, l.Master, l.Group, up, l.Inet6, l.Linkinfo.Slave["hairpin"], l.Linkinfo.Slave["isolated"]))
	}
}

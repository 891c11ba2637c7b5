// Package docs_test makes docs/ruleset.md from the live table.
package docs_test

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"berth"
	"berth/engine"
	"berth/internal/nettest"
)

var update = flag.Bool("update", false, "write docs/ruleset.md")

// notes say of each chain what it is for, and of each rule why it is there.
var notes = map[string]string{
	"chain refuse":                                     "Where packets end that cross a border.",
	"iifname @refused_from":                            "Counts, in the element of the network that is left.",
	"oifname @refused_to":                              "Counts, in the element of the network that was to be entered.",
	"dnat ip to ip daddr":                              "A port at one address of the host.",
	"meta nfproto ipv4 dnat":                           "A port at any of its addresses, 127.0.0.53 and the like too.",
	"dnat ip6 to ip6 daddr":                            "The same for IPv6.",
	"meta nfproto ipv6 dnat":                           "The same for IPv6.",
	"fib daddr type local jump publish_port":           "Only what is addressed to the host itself, at whichever of its addresses.",
	"jump refuse":                                      "Everything else.",
	"drop comment":                                     "The comment is the id of the run store the table belongs to.",
	"chain raw":                                        "Before connection tracking: nobody speaks as the host or as another network, and nobody outside addresses a sandbox.",
	`iifname "lo" return`:                              "The host may reach its own bridge addresses, a DNS server on the gateway for one.",
	"ip daddr 127.0.0.0/8 jump refuse":                 "A port published on 127.0.0.1 is the host's alone: without this it could be reached from every neighbour that sends to the host's MAC address.",
	"ip saddr 127.0.0.0/8 jump refuse":                 "route_localnet would let a sandbox speak as the host's loopback.",
	"chain forged":                                     "Where packets from a network begin. For each of them: the connection of one that is established does not say where the packet came in.",
	"fib saddr . iif oif missing":                      "The way back to the source does not lead out where the packet came in: it is forged.",
	"iifname @bridges goto forged":                     "From a network the shield does not count; what it may reach is decided in forward and input.",
	"ip daddr @shield4 counter drop":                   "A route to the subnet is no way in.",
	"ip saddr @shield4 counter drop":                   "Nobody outside speaks as a sandbox.",
	"ip6 daddr @shield6 counter drop":                  "The same for IPv6.",
	"ip6 saddr @shield6 counter drop":                  "The same for IPv6.",
	"chain publish_port":                               "A published port is one element: at one address, or at any. The first look-up that finds something decides.",
	"chain nat_in":                                     "What arrives for the host itself.",
	"chain nat_out":                                    "What the host sends to itself, 127.0.0.1 among it.",
	"chain forward":                                    "What may cross a border.",
	"iifname @bridges goto leave":                      "From a network.",
	"oifname @bridges goto enter":                      "Into a network, from elsewhere.",
	"meta nfproto . iifname @uplinks":                  "What is not ours passes, but where Berth switched forwarding on, the links of that moment do not become routed into each other.",
	"chain leave":                                      "What may leave a network.",
	"chain enter":                                      "What may enter a network from elsewhere.",
	"ct direction reply ct status dnat accept":         "The answers of a published port. A packet without a connection has neither and goes on.",
	"ct state invalid counter drop":                    "Without a connection no address is translated back: it would leave with a sandbox's own.",
	"iifname . oifname @within accept":                 "Neighbours; with br_netfilter, bridged frames come here too. Never by \"established\": a connection opened while the table was gone must not live on.",
	"iifname @closed jump caged":                       "Before the published ports: not even through another network's.",
	"chain caged":                                      "What an internal network may send elsewhere: answers. It begins nothing.",
	"ct direction reply return":                        "An answer. What is not tracked, as neighbour discovery is not, has no direction and is none.",
	"ct status dnat accept":                            "Through a published port.",
	"iifname @open ct direction reply accept":          "Its answers to another network. What it begins there is refused, as from every network.",
	"oifname @open accept":                             "A network that may be entered without one.",
	"oifname != @bridges accept":                       "The way out.",
	"ct state established,related accept":              "The answers to what left.",
	"chain input":                                      "What a sandbox may reach on the host.",
	"iifname != @bridges return":                       "Not from a sandbox.",
	"ct direction reply accept":                        "The host's own connections to sandboxes are answered.",
	"iifname @deaf meta l4proto":                       "host=deny: nothing but neighbour discovery and broadcasts.",
	"iifname @closed fib daddr":                        "An internal network reaches its own gateway's address and nothing else of the host.",
	"ip daddr @shield4 fib daddr":                      "Another network's gateway is another network.",
	"ip6 daddr @shield6 fib daddr":                     "The same for IPv6.",
	"chain nat_post":                                   "Which address a packet leaves with.",
	`oifname "lo" return`:                              "Not on the loopback.",
	"oifname @bridges ip saddr 127.0.0.0/8 masquerade": "The host's 127.0.0.1 through a published port: a sandbox could not answer it.",
	"oifname @bridges ip6 saddr ::1 masquerade":        "The same for ::1.",
	"ct status dnat ip saddr . oifname @hairpin4":      "A sandbox that reaches its own network's port through the host must be answered through the host. By prefix, as br_netfilter calls this hook without an input link.",
	"ct status dnat ip6 saddr . oifname @hairpin6":     "The same for IPv6.",
	"oifname != @bridges ip saddr @masq4 masquerade":   "The way out.",
	"oifname != @bridges ip6 saddr @masq6 masquerade":  "The same for IPv6.",
	"set bridges":                                      "Our bridges and links, and foreign bridges that were handed to us.", "set within": "`bt-a . bt-a`: neighbours may talk. Absent with `icc=false`.",
	"set closed": "Internal networks.", "set deaf": "Networks with `host=deny`.", "set open": "Networks that may be entered from outside without a published port.",
	"set uplinks": "Links that were there when Berth switched forwarding on.", "set masq4": "What leaves with the host's address.", "set masq6": "The same for IPv6.",
	"set shield4": "What nobody outside may address or speak as; each prefix counts what was dropped.", "set shield6": "The same for IPv6.",
	"set hairpin4": "Each prefix with its own bridge.", "set hairpin6": "The same for IPv6.",
	"set refused_from": "Counts what was dropped leaving a network.", "set refused_to": "Counts what was dropped entering it.",
	"map publish4": "Ports at one address of the host.", "map publish6": "The same for IPv6.", "map publish_any4": "Ports at any address.", "map publish_any6": "The same for IPv6.",
}

// TestRulesetIsCurrent makes the document from the table of a host with one
// network and two ports, and compares.
func TestRulesetIsCurrent(t *testing.T) {
	h := nettest.NewHost(t)
	e, err := engine.Open(t.Context(), engine.Options{Root: t.TempDir(), Run: t.TempDir(), NetNS: fmt.Sprintf("/proc/%d/ns/net", h.Pid())})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if _, err := e.CreateNetwork(t.Context(), engine.NetworkSpec{Name: "front"}); err != nil {
		t.Fatal(err)
	}
	sb := engine.NetNS(fmt.Sprintf("/proc/%d/ns/net", nettest.NewHost(t).Pid()))
	if _, err := e.Connect(t.Context(), "front", sb, engine.ConnectOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"8888:80", "127.0.0.1:9999:99/udp"} {
		specs, err := berth.ParsePortSpec(s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.Publish(t.Context(), sb, specs, engine.PublishOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	want := document(t, h.Run(t, "nft", "list", "table", "inet", "berth"))
	if *update {
		if err := os.WriteFile("ruleset.md", []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if have, err := os.ReadFile("ruleset.md"); err != nil || string(have) != want {
		t.Errorf("docs/ruleset.md is not current (go test ./docs -update): %v", err)
	}
}

var changing = regexp.MustCompile(`(store )[0-9a-f]{12}|(path:)/proc/[0-9]+/ns/net`)

// document writes the listing part by part, each rule with its reason.
func document(t *testing.T, listing string) string {
	var b strings.Builder
	b.WriteString("# The firewall, rule by rule\n\nMade from the live table by a test (`go test ./docs -update`), on a host with a network `front` and two\npublished ports. The rules never change while Berth runs; what changes are the elements of the sets and maps.\n")
	listing = changing.ReplaceAllString(listing, "${1}${2}…")
	// nft lists an anonymous set in the order of its hashes.
	listing = regexp.MustCompile(`!= \{ ([a-z, ]+) \}`).ReplaceAllStringFunc(listing, func(s string) string {
		words := strings.Split(strings.Trim(s, "!={} "), ", ")
		slices.Sort(words)
		return "!= { " + strings.Join(words, ", ") + " }"
	})
	first := false // of a chain's rules
	for line := range strings.Lines(listing) {
		line = strings.TrimRight(line, "\n")
		text := strings.TrimSpace(line)
		switch {
		case text == "" || text == "}" || strings.HasPrefix(line, "table"):
			continue
		case strings.HasPrefix(line, "\tset") || strings.HasPrefix(line, "\tmap") || strings.HasPrefix(line, "\tchain"):
			name := strings.TrimSuffix(text, " {")
			fmt.Fprintf(&b, "\n## %s\n\n%s\n\n", name, note(t, name))
		case strings.HasPrefix(text, "type "), strings.HasPrefix(text, "flags "), text == "counter",
			strings.HasPrefix(text, "elements"), strings.HasPrefix(line, "\t\t\t"), text == "size 65535":
			fmt.Fprintf(&b, "    %s\n", text)
			first = true
			continue
		default:
			fmt.Fprintf(&b, "%s- `%s`: %s\n", gap(first), text, note(t, text))
		}
		first = false
	}
	return b.String()
}

// gap sets a list apart from the block before it.
func gap(first bool) string {
	if first {
		return "\n"
	}
	return ""
}

// note finds the longest key that a line begins with.
func note(t *testing.T, line string) string {
	t.Helper()
	plain := strings.ReplaceAll(line, "packets 0 bytes 0 ", "")
	best := ""
	for k := range notes {
		if strings.HasPrefix(plain, k) && len(k) > len(best) {
			best = k
		}
	}
	if best == "" {
		t.Errorf("no reason is given for: %s", plain)
	}
	return notes[best]
}

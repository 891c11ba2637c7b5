package main

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"time"

	"berth/internal/netns"
)

// bareBridge is two namespaces on a bridge without any rule.
func bareBridge() (host *netns.NS, w way) {
	host = fresh()
	ends := several(2)
	shell(host, "ip link set lo up; ip link add br0 type bridge; ip addr add 10.77.0.1/24 dev br0; ip link set br0 up")
	for i, ns := range ends {
		shell(host, fmt.Sprintf("ip link add v%d type veth peer name eth0 netns %s; ip link set v%d master br0 up", i, pathOf(ns), i))
		shell(ns, fmt.Sprintf("ip addr add 10.77.0.%d/24 dev eth0; ip link set lo up; ip link set eth0 up", i+2))
	}
	serve(ends[1])
	return host, way{from: ends[0], to: netip.MustParseAddr("10.77.0.3")}
}

// bareDNAT is a namespace behind one rule.
func bareDNAT() way {
	host := fresh()
	outside, inside := lan(host), fresh()
	shell(host, "ip link add br0 type bridge; ip addr add 10.77.0.1/24 dev br0; ip link set br0 up; ip link add v0 type veth peer name eth0 netns "+pathOf(inside)+"; ip link set v0 master br0 up; sysctl -qw net.ipv4.ip_forward=1")
	shell(inside, "ip link set lo up; ip addr add 10.77.0.2/24 dev eth0; ip link set eth0 up; ip route add default via 10.77.0.1")
	// One rule with a range, for the three ports of the server.
	shell(host, `nft 'table ip bare { chain pre { type nat hook prerouting priority -100; tcp dport 81-83 dnat to 10.77.0.2; }; chain post { type nat hook postrouting priority 100; oifname "uplink" masquerade; }; }'`)
	serve(inside)
	return way{from: outside, to: netip.MustParseAddr("192.0.2.1")}
}

// dataPath compares the way inside a network with a bare bridge, and the way
// through a published port with one bare rule.
func dataPath() []row {
	slice := 500 * time.Millisecond
	if *quick {
		slice = 100 * time.Millisecond
	}
	rows := neighbours(slice)
	p := newBed()
	outside, web := lan(p.host), fresh()
	p.connect(web)
	p.publish(web, "81-83:81-83")
	serve(web)
	port := way{from: outside, to: netip.MustParseAddr("192.0.2.1")}
	const names = "LAN to a published port / one bare DNAT rule: "
	rows = append(rows, against(names, port, bareDNAT(), slice, [3]limit{atLeast(0.95), {}, atLeast(0.85)})...)
	return append(rows, crowded(port, slice))
}

// neighbours measures the way inside a network, with br_netfilter and without
// where the kernel has it.
func neighbours(slice time.Duration) (rows []row) {
	b := newBed()
	ends := several(2)
	b.connect(ends[0])
	b.connect(ends[1])
	serve(ends[1])
	ours := way{from: ends[0], to: netip.MustParseAddr(b.address(ends[1]))}
	bare, reference := bareBridge()
	want := [3]limit{atLeast(0.95), atMost(1.05), atLeast(0.95)}
	out, err := try(b.host, exec.Command("sysctl", "-n", "net.bridge.bridge-nf-call-iptables"))
	if err != nil || strings.TrimSpace(out) == "0" {
		return against("inside a network / a bare bridge: ", ours, reference, slice, want)
	}
	filter := func(on string) {
		for _, host := range []*netns.NS{b.host, bare} {
			shell(host, "sysctl -qw net.bridge.bridge-nf-call-iptables="+on)
		}
	}
	filter("0")
	rows = against("inside a network / a bare bridge, br_netfilter off: ", ours, reference, slice, want)
	filter("1")
	rows = append(rows, against("inside a network / a bare bridge, br_netfilter on: ", ours, reference, slice, want)...)
	// What any address translation on the host costs neighbours then: no rules
	// that know connections can do with less.
	masquerading, floor := bareBridge()
	shell(masquerading, `sysctl -qw net.bridge.bridge-nf-call-iptables=1; nft 'table ip bare { chain post { type nat hook postrouting priority 100; oifname "uplink" masquerade; }; }'`)
	rows = append(rows, against("inside a network / a bridge beside one masquerade rule, br_netfilter on: ", ours, floor, slice, [3]limit{})...)
	return append(rows, against("a bridge beside one masquerade rule / a bare bridge, br_netfilter on: ", floor, reference, slice, [3]limit{})...)
}

// against compares two ways in throughput, round trip and new connections.
func against(names string, ours, reference way, slice time.Duration, want [3]limit) []row {
	rows := []row{
		{what: names + "one stream", unit: " Gb/s", want: want[0]},
		{what: names + "request and response", unit: " µs", want: want[1]},
		{what: names + "new connections", unit: "/s", want: want[2]},
	}
	kinds := []func(way) float64{
		func(w way) float64 { return w.throughput(slice) },
		func(w way) float64 { return w.roundTrip(slice / 2) },
		func(w way) float64 { return w.newConnections(slice) },
	}
	for i := range rounds(18) {
		for k, kind := range kinds {
			turn(i, func() { rows[k].ours.add(kind(ours)) }, func() { rows[k].reference.add(kind(reference)) })
		}
	}
	return rows
}

// crowded compares new connections with ten thousand ports published and with
// one, on two hosts.
func crowded(few way, slice time.Duration) row {
	b := newBed()
	outside, web := lan(b.host), fresh()
	b.connect(web)
	b.publish(web, tenThousand)
	b.publish(web, fmt.Sprintf("%d:%[1]d", portConnect))
	serve(web)
	many := way{from: outside, to: few.to}
	r := row{what: "new connections through a port, 10,000 others published / none", unit: "/s", want: atLeast(0.95)}
	for i := range rounds(18) {
		turn(i, func() { r.ours.add(many.newConnections(slice)) }, func() { r.reference.add(few.newConnections(slice)) })
	}
	return r
}

package main

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"sync/atomic"
	"time"

	"berth/internal/netns"
)

// A server takes connections: one that says 's' is drained, one that says 'e'
// is echoed, one that says nothing is closed when its peer closes.
func serve(ns *netns.NS, addr string) {
	var l net.Listener
	check(ns.Do(func() (err error) { l, err = net.Listen("tcp", addr); return err }))
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				var kind [1]byte
				if _, err := io.ReadFull(c, kind[:]); err != nil {
					return
				}
				if kind[0] == 'e' {
					_, _ = io.Copy(c, c)
				} else {
					_, _ = io.Copy(io.Discard, c)
				}
			}()
		}
	}()
}

func dial(ns *netns.NS, addr string) (c net.Conn) {
	check(ns.Do(func() (err error) { c, err = net.DialTimeout("tcp", addr, 2*time.Second); return err }))
	return c
}

// throughput is what one stream moves, in Gb/s.
func throughput(from *netns.NS, addr string, d time.Duration) float64 {
	c := dial(from, addr)
	defer c.Close()
	buf := make([]byte, 256<<10)
	buf[0] = 's'
	var sent int64
	start := time.Now()
	for time.Since(start) < d {
		n, err := c.Write(buf)
		check(err)
		sent += int64(n)
	}
	return float64(sent) * 8 / time.Since(start).Seconds() / 1e9
}

// roundTrip is the median of request and response over one connection, in µs.
func roundTrip(from *netns.NS, addr string, n int) float64 {
	c := dial(from, addr)
	defer c.Close()
	_, err := c.Write([]byte{'e'})
	check(err)
	var s sample
	var b [1]byte
	for range n {
		start := time.Now()
		must(c.Write(b[:]))
		must(io.ReadFull(c, b[:]))
		s = append(s, float64(time.Since(start).Nanoseconds())/1e3)
	}
	return s.median()
}

// newConnections is how many are opened and closed in a second.
func newConnections(from *netns.NS, addr string, d time.Duration) float64 {
	var n atomic.Int64
	start := time.Now()
	check(from.Do(func() error {
		for time.Since(start) < d {
			c, err := net.DialTimeout("tcp", addr, 2*time.Second)
			if err != nil {
				return err
			}
			// Closed with a reset, so that no port waits.
			_ = c.(*net.TCPConn).SetLinger(0)
			c.Close()
			n.Add(1)
		}
		return nil
	}))
	return float64(n.Load()) / time.Since(start).Seconds()
}

func shell(ns *netns.NS, script string) {
	if out, err := exec.Command("nsenter", "--net="+pathOf(ns), "sh", "-ec", script).CombinedOutput(); err != nil {
		panic(fmt.Sprintf("%s: %v: %s", script, err, out))
	}
}

// at is how to name a namespace to ip(8) from inside another.
func at(ns *netns.NS) string { return pathOf(ns) }

// bareBridge is two namespaces on a bridge without any rule.
func bareBridge() (a, b *netns.NS, addr string) {
	host := fresh()
	a, b = fresh(), fresh()
	shell(host, "ip link set lo up; ip link add br0 type bridge; ip link set br0 up")
	for i, ns := range []*netns.NS{a, b} {
		shell(host, fmt.Sprintf("ip link add v%d type veth peer name eth0 netns %s; ip link set v%d master br0 up", i, at(ns), i))
		shell(ns, fmt.Sprintf("ip addr add 10.77.0.%d/24 dev eth0; ip link set lo up; ip link set eth0 up", i+2))
	}
	return a, b, "10.77.0.3:80"
}

// lan wires an outside to a host.
func lan(host *netns.NS) *netns.NS {
	out := fresh()
	shell(host, "ip link set lo up; ip link add uplink type veth peer name lan0 netns "+at(out)+"; ip addr add 192.0.2.1/24 dev uplink; ip link set uplink up")
	shell(out, "ip link set lo up; ip addr add 192.0.2.2/24 dev lan0; ip link set lan0 up")
	return out
}

// bareDNAT is a namespace behind one rule.
func bareDNAT() (outside, inside *netns.NS) {
	host := fresh()
	outside, inside = lan(host), fresh()
	shell(host, "ip link add br0 type bridge; ip addr add 10.77.0.1/24 dev br0; ip link set br0 up; ip link add v0 type veth peer name eth0 netns "+at(inside)+"; ip link set v0 master br0 up; sysctl -qw net.ipv4.ip_forward=1")
	shell(inside, "ip link set lo up; ip addr add 10.77.0.2/24 dev eth0; ip link set eth0 up; ip route add default via 10.77.0.1")
	shell(host, "nft 'table ip bare { chain pre { type nat hook prerouting priority -100; tcp dport 8888 dnat to 10.77.0.2:80; }; chain post { type nat hook postrouting priority 100; oifname uplink masquerade; }; }'")
	return outside, inside
}

// dataPath compares the way inside a network with a bare bridge, and the way
// through a published port with one bare rule.
func dataPath() []row {
	long := time.Second
	if *quick {
		long = 100 * time.Millisecond
	}
	b := newBed()
	s1, s2 := fresh(), fresh()
	b.connect(s1)
	b.connect(s2)
	a, far, addr := bareBridge()
	serve(far, addr)
	ours := addressOf(b, s2) + ":80"
	serve(s2, ours)

	p := newBed()
	outside := lan(p.host)
	web := fresh()
	p.connect(web)
	p.publish(web, "8888:80")
	serve(web, "0.0.0.0:80")
	bareOut, bareIn := bareDNAT()
	serve(bareIn, "0.0.0.0:80")

	var rows []row
	for _, m := range []struct {
		what       string
		ours, bare func() float64
		unit       string
		wanted     float64
		less       bool
	}{
		{"inside a network / a bare bridge: one stream", func() float64 { return throughput(s1, ours, long) }, func() float64 { return throughput(a, addr, long) }, "Gb/s", 0.95, false},
		{"inside a network / a bare bridge: request and response, p50", func() float64 { return roundTrip(s1, ours, 3000) }, func() float64 { return roundTrip(a, addr, 3000) }, "µs", 1 / 0.95, true},
		{"inside a network / a bare bridge: new connections a second", func() float64 { return newConnections(s1, ours, long) }, func() float64 { return newConnections(a, addr, long) }, "/s", 0.95, false},
		{"LAN to a published port / one bare DNAT rule: one stream", func() float64 { return throughput(outside, "192.0.2.1:8888", long) }, func() float64 { return throughput(bareOut, "192.0.2.1:8888", long) }, "Gb/s", 0.95, false},
		{"LAN to a published port / one bare DNAT rule: new connections a second", func() float64 { return newConnections(outside, "192.0.2.1:8888", long) }, func() float64 { return newConnections(bareOut, "192.0.2.1:8888", long) }, "/s", 0.85, false},
	} {
		var x, y sample
		for range rounds(20) {
			x, y = append(x, m.ours()), append(y, m.bare())
		}
		rows = append(rows, rate(m.what, x, y, m.unit, m.wanted, m.less))
	}
	return append(rows, portsInTheWay(p, outside, web, long))
}

// portsInTheWay compares new connections with ten thousand ports published and
// with one.
func portsInTheWay(p *bed, outside, web *netns.NS, long time.Duration) row {
	var one, many sample
	for range max(3, rounds(20)/4) {
		for range 3 {
			one = append(one, newConnections(outside, "192.0.2.1:8888", long))
		}
		p.publish(web, "20000-29999:20000-29999")
		for range 3 {
			many = append(many, newConnections(outside, "192.0.2.1:8888", long))
		}
		must(p.Unpublish(ctx, ref(web), mustSpecs("20000-29999:20000-29999")))
	}
	return rate("new connections a second with 10,000 ports published / with one", many, one, "/s", 0.95, false)
}

func rate(what string, x, y sample, unit string, wanted float64, less bool) row {
	show := func(s sample) string {
		return fmt.Sprintf("%.1f %s [%.1f–%.1f]", s.median(), unit, s.at(0.25), s.at(0.75))
	}
	r := x.median() / y.median()
	met, sign := r >= wanted, "≥"
	if less {
		met, sign = r <= wanted, "≤"
	}
	return row{what, show(x), show(y), ratio(x, y), fmt.Sprintf("%s %.2f", sign, wanted), yes(met)}
}

// addressOf is the IPv4 address of a sandbox.
func addressOf(b *bed, sb *netns.NS) string {
	d := must(b.InspectSandbox(ctx, ref(sb)))
	return d.Endpoints[0].Addr4().String()
}

// conntrack measures taking a UDP port back with a hundred thousand
// connections in the table.
func conntrack() []row {
	n := 100000
	if *quick {
		n = 5000
	}
	b := newBed()
	outside := lan(b.host)
	web := fresh()
	b.connect(web)
	b.publish(web, "53:53/udp")
	var empty, full sample
	for range rounds(10) {
		empty.timed(func() { must(b.Unpublish(ctx, ref(web), mustSpecs("53:53/udp"))) })
		b.publish(web, "53:53/udp")
	}
	// Each connection is one datagram with a source of its own.
	shell(outside, "ip addr add 192.0.2.3/24 dev lan0; ip addr add 192.0.2.4/24 dev lan0")
	sent := 0
	for _, src := range []string{"192.0.2.2", "192.0.2.3", "192.0.2.4"} {
		for port := 1024; port < 60000 && sent < n; port++ {
			check(outside.Do(func() error {
				c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(fmt.Sprintf("%s:%d", src, port))), net.UDPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.1:53")))
				if err != nil {
					return err
				}
				defer c.Close()
				_, err = c.Write([]byte("x"))
				return err
			}))
			sent++
		}
	}
	full.timed(func() { must(b.Unpublish(ctx, ref(web), mustSpecs("53:53/udp"))) })
	return []row{{fmt.Sprintf("unpublish of a UDP port with %d connections in the table / with none", n), full.ms(), empty.ms(), ratio(full, empty), "recorded", ""}}
}

package kernel

import (
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth"
	"berth/internal/netns"
	"berth/internal/nettest"
	"berth/internal/plan"
)

// published is a host whose UDP ports 5300 and 5400 and TCP port 8000 lead to
// c1, and flows that were opened through all three.
func published(t *testing.T) *world {
	w := newWorld(t, "c1", "d2")
	n := bridgeNet("a", "10.9.0.0/24", "")
	s := plan.Sum(plan.Base(true, false, plan.Uplinks{}), plan.Network(n, true),
		plan.Sandbox("c1", []plan.Attachment{attachment(n, "c1", 0, "10.9.0.2/24")}),
		plan.Sandbox("d2", []plan.Attachment{attachment(n, "d2", 0, "10.9.0.3/24")}))
	for _, p := range []berth.Port{
		{PortKey: berth.PortKey{Protocol: berth.UDP, HostIP: addr("0.0.0.0"), HostPort: 5300}},
		{PortKey: berth.PortKey{Protocol: berth.UDP, HostIP: addr("192.0.2.1"), HostPort: 5400}},
		{PortKey: berth.PortKey{Protocol: berth.TCP, HostIP: addr("0.0.0.0"), HostPort: 8000}},
	} {
		p.To = netip.MustParseAddrPort("10.9.0.2:53")
		s.Add(plan.Ports("c1", p))
	}
	w.become(t, s)
	lan := w.host.LAN(t)
	for _, proto := range []string{"udp", "tcp"} {
		nettest.Serve(t, w.there["c1"], proto, netip.MustParseAddrPort("10.9.0.2:53"), "c1")
	}
	nettest.Serve(t, w.there["d2"], "udp", netip.MustParseAddrPort("10.9.0.3:53"), "d2")
	for to, proto := range map[string]string{"192.0.2.1:5300": "udp", "192.0.2.1:5400": "udp", "192.0.2.1:8000": "tcp"} {
		if answer, err := nettest.Dial(t, lan, proto, netip.MustParseAddrPort(to), 5*time.Second); err != nil {
			t.Fatalf("%s %s: %q, %v", proto, to, answer, err)
		}
	}
	if _, err := nettest.Dial(t, w.host, "udp", netip.MustParseAddrPort("10.9.0.3:53"), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	return w
}

// flows tells which of the flows of published the host remembers.
func flows(t *testing.T, w *world) string {
	t.Helper()
	list := w.host.Run(t, "conntrack", "-L")
	var out []string
	for _, f := range []struct{ name, mark string }{{"5300", "dport=5300 "}, {"5400", "dport=5400 "}, {"8000", "dport=8000 "}, {"d2", "dst=10.9.0.3 "}} {
		if strings.Contains(list, f.mark) {
			out = append(out, f.name)
		}
	}
	return strings.Join(out, " ")
}

func TestFlushConntrack(t *testing.T) {
	t.Parallel()
	key := func(p berth.Protocol, ip string, n uint16) berth.PortKey {
		return berth.PortKey{Protocol: p, HostIP: addr(ip), HostPort: n}
	}
	for name, tt := range map[string]struct {
		step plan.FlushConntrack
		left string
	}{
		"an address":             {plan.FlushConntrack{Addrs: []netip.Addr{addr("10.9.0.2")}}, "d2"},
		"an address of nobody":   {plan.FlushConntrack{Addrs: []netip.Addr{addr("10.9.0.9"), addr("fd00::1")}}, "5300 5400 8000 d2"},
		"a port on any":          {plan.FlushConntrack{Ports: []berth.PortKey{key(berth.UDP, "0.0.0.0", 5300)}}, "5400 8000 d2"},
		"a port on one":          {plan.FlushConntrack{Ports: []berth.PortKey{key(berth.UDP, "192.0.2.1", 5400)}}, "5300 8000 d2"},
		"a port on another":      {plan.FlushConntrack{Ports: []berth.PortKey{key(berth.UDP, "192.0.2.9", 5400)}}, "5300 5400 8000 d2"},
		"a port of IPv6":         {plan.FlushConntrack{Ports: []berth.PortKey{key(berth.UDP, "::", 5300)}}, "5300 5400 8000 d2"},
		"TCP ends itself":        {plan.FlushConntrack{Ports: []berth.PortKey{key(berth.TCP, "0.0.0.0", 8000)}}, "5300 5400 8000 d2"},
		"TCP is cut":             {plan.FlushConntrack{Ports: []berth.PortKey{key(berth.TCP, "0.0.0.0", 8000)}, Cut: true}, "5300 5400 d2"},
		"the port of a sandbox":  {plan.FlushConntrack{Ports: []berth.PortKey{key(berth.UDP, "0.0.0.0", 53)}, Cut: true}, "5300 5400 8000"},
		"nothing":                {plan.FlushConntrack{}, "5300 5400 8000 d2"},
		"an address and a port":  {plan.FlushConntrack{Addrs: []netip.Addr{addr("10.9.0.3")}, Ports: []berth.PortKey{key(berth.UDP, "0.0.0.0", 5300)}}, "5400 8000"},
		"the address of the LAN": {plan.FlushConntrack{Addrs: []netip.Addr{addr("192.0.2.2")}}, "d2"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := published(t)
			w.apply(t, tt.step)
			if left := flows(t, w); left != tt.left {
				t.Errorf("left %q, want %q", left, tt.left)
			}
		})
	}
}

// TestDropAndFlushTogether: links and what the host remembers of their
// addresses go in one Apply, whether or not the firewall is needed after it.
func TestDropAndFlushTogether(t *testing.T) {
	t.Parallel()
	for name, after := range map[string][]plan.Step{
		"last":                 nil,
		"before a transaction": {plan.Transaction{Remove: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := published(t)
			var host string
			for k, l := range w.read(t).Links {
				if k.Place == plan.Host && l.Peer.Place == "c1" {
					host = k.Name
				}
			}
			w.apply(t, append([]plan.Step{
				plan.DropLinks{Names: []string{host}},
				plan.FlushConntrack{Addrs: []netip.Addr{addr("10.9.0.2")}},
			}, after...)...)
			if left := flows(t, w); left != "d2" {
				t.Errorf("left %q", left)
			}
			table, err := w.Table() // dials again
			if err != nil || table.Present == (after != nil) {
				t.Errorf("table %+v, %v", table, err)
			}
			if names, _ := w.LinkNames(plan.Host); host == "" || names[host] {
				t.Errorf("link %q is there: %v", host, names)
			}
		})
	}
}

// TestFlushAfterTheLink: whoever sends while it is disconnected leaves nothing
// behind. It takes some rounds to meet the moment between a look at the
// connections and the link's end; several links make it longer.
func TestFlushAfterTheLink(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "c1")
	w.host.LAN(t)
	n := bridgeNet("a", "10.9.0.0/24", "")
	var legs []plan.Attachment
	for i := range 10 {
		legs = append(legs, attachment(n, "c1", i, fmt.Sprintf("10.9.0.%d/24", i+2)))
	}
	s := plan.Sum(plan.Base(true, false, plan.Uplinks{}), plan.Network(n, false), plan.Sandbox("c1", legs))
	var ends []string
	for k, l := range s.Links {
		if k.Place == plan.Host && l.Kind == plan.VethLink {
			ends = append(ends, k.Name)
		}
	}
	for round := range 30 {
		if err := w.Apply(t.Context(), plan.Steps(plan.Diff(w.read(t), s))); err != nil {
			t.Fatal(err)
		}
		stop := flood(w.there["c1"], [4]byte{192, 0, 2, 2})
		err := w.Apply(t.Context(), []plan.Step{
			plan.DropLinks{Names: ends},
			plan.FlushConntrack{Addrs: []netip.Addr{addr("10.9.0.2")}},
		})
		stop()
		if err != nil {
			t.Fatal(err)
		}
		if left := strings.Count(w.host.Run(t, "conntrack", "-L"), "src=10.9.0.2 "); left > 0 {
			t.Fatalf("round %d: %d connections of an address that is gone", round, left)
		}
	}
}

// flood sends packets from a namespace, each of which begins a connection, until
// the function is called that it returns.
func flood(from *netns.NS, to [4]byte) func() {
	var enough atomic.Bool
	started, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		_ = from.Do(func() error {
			for i := 0; !enough.Load(); i++ {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
				if err == nil {
					_ = unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: 9, Addr: to}) // until the link is gone
					unix.Close(fd)
				}
				if i == 100 {
					close(started)
				}
			}
			return nil
		})
	}()
	<-started
	return func() {
		enough.Store(true)
		<-ended
	}
}

package engine_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"berth"
	"berth/engine"
	"berth/internal/nettest"
)

// TestBridgeIsFull: the kernel's limit is named, and nothing is left of what
// it refused.
func TestBridgeIsFull(t *testing.T) {
	w := newWorld(t)
	w.host.Run(t, "sh", "-c", `ip link add lxcbr0 type bridge && ip addr add 10.7.0.1/24 dev lxcbr0 && ip link set lxcbr0 up
for i in $(seq 511); do echo "link add p$i master lxcbr0 type veth peer name q$i"; echo "link set q$i master lxcbr0"; done | ip -batch -`)
	w.network(engine.NetworkSpec{Name: "front", Options: map[string]string{"bridge": "lxcbr0"}})
	last, _ := w.netns()
	w.connect("front", last, engine.ConnectOptions{})
	w.clean()
	const names = "ip -o link | cut -d: -f2" // how they stand is still settling
	before := w.host.Run(t, "sh", "-c", names)
	more, _ := w.netns()
	_, err := w.Connect(t.Context(), "front", more, engine.ConnectOptions{})
	if !errors.Is(err, berth.ErrExhausted) || !strings.Contains(err.Error(), "1023") {
		t.Errorf("the 1024th port: %v", err)
	}
	w.clean()
	if after := w.host.Run(t, "sh", "-c", names); after != before {
		t.Errorf("the refused left something:\n%s\nbefore:\n%s", after, before)
	}
	if sbs, err := w.Sandboxes(t.Context()); err != nil || len(sbs) != 1 {
		t.Errorf("known: %+v, %v", sbs, err)
	}
	if err := w.RemoveNetwork(t.Context(), "front", engine.RemoveOptions{Force: true}); err != nil {
		t.Error(err)
	}
	if n := strings.Count(w.host.Run(t, "ip", "-o", "link", "show", "master", "lxcbr0"), "\n"); n != 1022 {
		t.Errorf("the foreign bridge has %d ports left, want 1022", n)
	}
}

// TestNamespaceVanishes: a namespace may end at any moment of a call. The call
// does it or says why not, and nothing of it stays.
func TestNamespaceVanishes(t *testing.T) {
	w := newWorld(t)
	w.network(engine.NetworkSpec{Name: "front", IPv6: true})
	w.network(engine.NetworkSpec{Name: "back"})
	port := berth.PortSpec{Protocol: "tcp", HostLow: 8000, HostHigh: 8000, Port: 80}
	for i := range 24 {
		b := newBox(t)
		ended := make(chan struct{})
		go func() {
			// The call takes some milliseconds: each time the end comes later.
			time.Sleep(time.Duration(i) * 300 * time.Microsecond)
			b.end()
			close(ended)
		}()
		ref, ctx := b.ref(), t.Context()
		var errs []error
		for _, call := range []func() error{
			func() error { _, err := w.Connect(ctx, "front", ref, engine.ConnectOptions{}); return err },
			func() error {
				_, err := w.Publish(ctx, ref, []berth.PortSpec{port}, engine.PublishOptions{Replace: true})
				return err
			},
			func() error { _, err := w.Connect(ctx, "back", ref, engine.ConnectOptions{}); return err },
		} {
			errs = append(errs, call())
		}
		<-ended
		for _, err := range errs {
			if err != nil && !errors.Is(err, berth.ErrNotFound) {
				t.Errorf("after %d: %v", i, err)
			}
		}
		if _, err := w.Reconcile(ctx); err != nil {
			t.Fatal(err)
		}
		w.clean()
	}
	for _, n := range []string{"front", "back"} {
		if err := w.RemoveNetwork(t.Context(), n, engine.RemoveOptions{}); err != nil {
			t.Error(err)
		}
	}
	if left, err := w.host.Leftovers(); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

// TestReusedAddressMeetsNoOldRule: the next owner of a dead one's address does
// not get its ports.
func TestReusedAddressMeetsNoOldRule(t *testing.T) {
	w := newWorld(t)
	lan := w.host.LAN(t)
	w.network(engine.NetworkSpec{Name: "front"})
	b := newBox(t)
	ep := w.connect("front", b.ref(), engine.ConnectOptions{})
	w.publish(b.ref(), "8888:80", "127.0.0.1:8889:80")
	b.end()
	next, ns := w.netns()
	nettest.Serve(t, ns, "tcp", netip.MustParseAddrPort("0.0.0.0:80"), "next")
	w.connect("front", next, engine.ConnectOptions{IP4: ep.Addr4()})
	if out, err := nettest.Dial(t, lan, "tcp", netip.MustParseAddrPort("192.0.2.1:8888"), 700*time.Millisecond); err == nil {
		t.Errorf("the port of the dead leads to the next: %q", out)
	}
	if out, err := nettest.Dial(t, w.host, "tcp", netip.MustParseAddrPort("127.0.0.1:8889"), 700*time.Millisecond); err == nil {
		t.Errorf("the port of the dead leads to the next: %q", out)
	}
	w.clean()
}

// TestTwoEngines: two in one process know nothing of each other.
func TestTwoEngines(t *testing.T) {
	one := newWorld(t)
	two := &world{t: t, host: nettest.NewHost(t)}
	two.o = engine.Options{Root: t.TempDir(), Run: t.TempDir(), NetNS: fmt.Sprintf("/proc/%d/ns/net", two.host.Pid())}
	two.Engine = two.open()
	var eps []berth.Endpoint
	for i, w := range []*world{one, two} {
		w.network(engine.NetworkSpec{Name: "front"})
		sb, ns := w.netns()
		eps = append(eps, w.connect("front", sb, engine.ConnectOptions{}))
		w.publish(sb, "8888:80")
		nettest.Serve(t, ns, "tcp", netip.MustParseAddrPort("0.0.0.0:80"), fmt.Sprint("host ", i))
	}
	if eps[0].Addr4() != eps[1].Addr4() {
		t.Errorf("the addresses are %s and %s", eps[0].Addr4(), eps[1].Addr4())
	}
	for i, w := range []*world{one, two} {
		out, err := nettest.Dial(t, w.host, "tcp", netip.MustParseAddrPort("127.0.0.1:8888"), 10*time.Second)
		if err != nil || !strings.HasPrefix(out, fmt.Sprint("host ", i)) {
			t.Errorf("on host %d: %q, %v", i, out, err)
		}
		w.clean()
	}
	if err := one.RemoveNetwork(t.Context(), "front", engine.RemoveOptions{Force: true}); err != nil {
		t.Error(err)
	}
	one.clean()
	two.clean()
	// The store of one is not for the other's host.
	o := two.o
	o.NetNS = one.o.NetNS
	e, err := engine.Open(t.Context(), o)
	if err == nil {
		_, err = e.Connect(t.Context(), "front", fmt.Sprintf("path:/proc/%d/ns/net", two.host.Pid()), engine.ConnectOptions{})
		e.Close()
	}
	if !errors.Is(err, berth.ErrConflict) {
		t.Errorf("a store of another host: %v", err)
	}
}

// talk answers every line at addr with name and the line, for as long as the
// asker likes.
func talk(t *testing.T, place nettest.Place, addr, name string) {
	t.Helper()
	err := place.Do(func() error {
		l, err := net.Listen("tcp4", addr)
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return // closed
				}
				go func() {
					defer c.Close()
					for s := bufio.NewScanner(c); s.Scan(); {
						fmt.Fprintln(c, name)
					}
				}()
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A caller keeps its connection.
type caller struct {
	net.Conn
	r *bufio.Reader
}

func call(t *testing.T, place nettest.Place, network, addr string) *caller {
	t.Helper()
	c := &caller{}
	err := place.Do(func() (err error) {
		c.Conn, err = net.Dial(network, addr)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.r = bufio.NewReader(c)
	return c
}

// ask returns who answers, or "nobody" after patience.
func (c *caller) ask(patience time.Duration) string {
	c.SetDeadline(time.Now().Add(patience))
	fmt.Fprintln(c, "who")
	buf := make([]byte, 100)
	n, err := c.r.Read(buf)
	if err != nil {
		return "nobody"
	}
	who, _, _ := strings.Cut(strings.TrimSpace(string(buf[:n])), " ")
	return who
}

// TestReplaceAndFlows: an established connection stays where it is when its
// port moves, unless it is cut; datagrams follow the port.
func TestReplaceAndFlows(t *testing.T) {
	w := newWorld(t)
	lan := w.host.LAN(t)
	w.network(engine.NetworkSpec{Name: "front"})
	boxes := map[string]string{}
	for _, name := range []string{"web", "api"} {
		ref, ns := w.netns()
		boxes[name] = ref
		w.connect("front", ref, engine.ConnectOptions{})
		talk(t, ns, "0.0.0.0:80", name)
		nettest.Serve(t, ns, "udp", netip.MustParseAddrPort("0.0.0.0:53"), name)
	}
	specs := []berth.PortSpec{{Protocol: "tcp", HostLow: 8888, HostHigh: 8888, Port: 80}, {Protocol: "udp", HostLow: 53, HostHigh: 53, Port: 53}}
	move := func(to string, cut bool) {
		t.Helper()
		if _, err := w.Publish(t.Context(), boxes[to], specs, engine.PublishOptions{Replace: true, Cut: cut}); err != nil {
			t.Fatal(err)
		}
		w.clean()
	}
	who := func(c *caller, want string) {
		t.Helper()
		patience := 10 * time.Second
		if want == "nobody" {
			patience = time.Second
		}
		if got := c.ask(patience); got != want {
			t.Errorf("%s answers, want %s", got, want)
		}
	}
	move("web", false)
	tcp, udp := call(t, lan, "tcp4", "192.0.2.1:8888"), call(t, lan, "udp4", "192.0.2.1:53")
	who(tcp, "web")
	who(udp, "web")
	move("api", false)
	who(tcp, "web")
	who(udp, "api")
	who(call(t, lan, "tcp4", "192.0.2.1:8888"), "api")
	move("web", true)
	second := call(t, lan, "tcp4", "192.0.2.1:8888")
	who(second, "web")
	who(udp, "web")
	move("api", true)
	who(second, "nobody")
	who(udp, "api")
	// What a disconnect takes away, the next owner of the address does not hear.
	if err := w.Disconnect(t.Context(), "front", []string{boxes["api"]}, engine.DisconnectOptions{}); err != nil {
		t.Fatal(err)
	}
	who(udp, "nobody")
	if slices.Contains([]string{"api", "web"}, call(t, w.host, "udp4", "192.0.2.1:53").ask(500*time.Millisecond)) {
		t.Error("a port that is gone answers")
	}
}

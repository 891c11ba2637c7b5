package engine_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"berth"
	"berth/engine"
	"berth/internal/netns"
	"berth/internal/nettest"
)

// world is a test host with an engine on it.
type world struct {
	*engine.Engine
	t    *testing.T
	host *nettest.Host
	o    engine.Options
}

func newWorld(t *testing.T) *world {
	t.Parallel()
	w := &world{t: t, host: nettest.NewHost(t)}
	w.o = engine.Options{Root: t.TempDir(), Run: t.TempDir(), NetNS: fmt.Sprintf("/proc/%d/ns/net", w.host.Pid())}
	w.Engine = w.open()
	return w
}

func (w *world) open() *engine.Engine {
	w.t.Helper()
	e, err := engine.Open(w.t.Context(), w.o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { e.Close() })
	return e
}

// netns makes a namespace of nobody's and returns its reference.
func (w *world) netns() (string, *netns.NS) {
	w.t.Helper()
	h := nettest.NewHost(w.t)
	return engine.NetNS(fmt.Sprintf("/proc/%d/ns/net", h.Pid())), h.NS()
}

func (w *world) network(spec engine.NetworkSpec) berth.Network {
	w.t.Helper()
	n, err := w.CreateNetwork(w.t.Context(), spec)
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func (w *world) connect(network, sandbox string, o engine.ConnectOptions) berth.Endpoint {
	w.t.Helper()
	ep, err := w.Connect(w.t.Context(), network, sandbox, o)
	if err != nil {
		w.t.Fatal(err)
	}
	return ep
}

func (w *world) publish(sandbox string, specs ...string) []berth.Port {
	w.t.Helper()
	var all []berth.PortSpec
	for _, s := range specs {
		p, err := berth.ParsePortSpec(s)
		if err != nil {
			w.t.Fatal(err)
		}
		all = append(all, p...)
	}
	ports, err := w.Publish(w.t.Context(), sandbox, all, engine.PublishOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return ports
}

// clean fails the test if the kernel is not what the store wants.
func (w *world) clean() {
	w.t.Helper()
	r, err := w.Check(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	if !r.Clean() {
		w.t.Fatalf("not clean: %+v", r)
	}
}

func TestConnectPublishFlushReconcile(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	lan := w.host.LAN(t)
	front := w.network(engine.NetworkSpec{Name: "front", IPv6: true})
	w.clean()
	web, webNS := w.netns()
	ep := w.connect("front", web, engine.ConnectOptions{})
	w.clean()
	if got, want := ep.Addr4(), front.Subnets[0].Gateway.Next(); got != want {
		t.Errorf("the first address is %s, want %s", got, want)
	}
	client, clientNS := w.netns()
	w.connect("front", client, engine.ConnectOptions{})

	nettest.Serve(t, webNS, "tcp", netip.MustParseAddrPort("[::]:80"), "hello")
	nettest.Serve(t, webNS, "tcp", netip.MustParseAddrPort("0.0.0.0:80"), "hello")
	dial := func(from *netns.NS, to string, want bool) {
		t.Helper()
		// What must come may take its time on a busy machine.
		patience := map[bool]time.Duration{true: 10 * time.Second, false: time.Second}[want]
		reply, err := nettest.Dial(t, from, "tcp", netip.MustParseAddrPort(to), patience)
		if got := err == nil && strings.Contains(reply, "hello"); got != want {
			t.Errorf("dial %s: %q, %v; want an answer: %v", to, reply, err, want)
		}
	}
	addr := func(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }
	dial(clientNS, addr(ep.Addr4(), 80), true)
	dial(clientNS, addr(ep.Addr6(), 80), true)
	dial(w.host.NS(), addr(ep.Addr4(), 80), true)
	dial(w.host.NS(), "127.0.0.1:8888", false)

	w.publish(web, "8888:80")
	w.clean()
	reach := func(want bool) {
		t.Helper()
		dial(w.host.NS(), "127.0.0.1:8888", want)
		dial(lan.NS(), "192.0.2.1:8888", want)
		dial(lan.NS(), "[2001:db8::1]:8888", want)
		dial(clientNS, "192.0.2.1:8888", want)
		dial(clientNS, addr(front.Subnets[0].Gateway, 8888), want)
		dial(webNS, addr(front.Subnets[0].Gateway, 8888), want)
	}
	reach(true)
	dial(lan.NS(), addr(ep.Addr4(), 80), false)
	w.host.Run(t, "nft", "flush", "ruleset")
	if r, err := w.Check(ctx); err != nil || r.Clean() {
		t.Fatalf("after a flush: %+v, %v", r, err)
	}
	if _, err := w.Reconcile(ctx); err != nil {
		t.Fatal(err)
	}
	w.clean()
	reach(true)

	// The next command that writes heals a flush by itself.
	w.host.Run(t, "nft", "flush", "ruleset")
	if _, err := w.Unpublish(ctx, client, nil); err != nil {
		t.Fatal(err)
	}
	w.clean()
	reach(true)
	if _, err := w.Unpublish(ctx, web, nil); err != nil {
		t.Fatal(err)
	}
	reach(false)
	w.clean()
	if err := w.Disconnect(ctx, "front", []string{web, client}, engine.DisconnectOptions{}); err != nil {
		t.Fatal(err)
	}
	w.clean()
	if err := w.RemoveNetwork(ctx, "front", engine.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	w.clean()
	if out := w.host.Run(t, "nft", "list", "ruleset"); strings.TrimSpace(out) != "" {
		t.Errorf("left in the firewall:\n%s", out)
	}
	if out := w.host.Run(t, "sysctl", "-n", "net.ipv4.ip_forward"); strings.TrimSpace(out) != "0" {
		t.Errorf("forwarding stayed on: %s", out)
	}
}

func TestRefusalLeavesNothing(t *testing.T) {
	w := newWorld(t)
	w.network(engine.NetworkSpec{Name: "front"})
	sb, _ := w.netns()
	a := w.connect("front", sb, engine.ConnectOptions{})
	other, _ := w.netns()
	_, err := w.Connect(t.Context(), "front", other, engine.ConnectOptions{IP4: a.Addr4()})
	if !errors.Is(err, berth.ErrConflict) {
		t.Errorf("the address of another: %v", err)
	}
	if _, err := w.Connect(t.Context(), "front", sb, engine.ConnectOptions{}); !errors.Is(err, berth.ErrExists) {
		t.Errorf("a second endpoint without --interface: %v", err)
	}
	w.connect("front", sb, engine.ConnectOptions{Interface: "second"})
	w.clean()
	if err := w.RemoveNetwork(t.Context(), "front", engine.RemoveOptions{}); !errors.Is(err, berth.ErrInUse) {
		t.Errorf("removed while connected: %v", err)
	}
	if err := w.RemoveNetwork(t.Context(), "front", engine.RemoveOptions{Force: true}); err != nil {
		t.Error(err)
	}
	w.clean()
}

// TestConnectPrefers: an address that is preferred is given if it is free, and
// does not change which one is next.
func TestConnectPrefers(t *testing.T) {
	w := newWorld(t)
	w.network(engine.NetworkSpec{Name: "front", Subnets: []berth.Subnet{{Prefix: netip.MustParsePrefix("10.9.0.0/24")}}})
	for _, c := range []struct{ prefer, want string }{
		{"10.9.0.9", "10.9.0.9"},
		{"10.9.0.9", "10.9.0.2"}, // taken
		{"10.8.0.9", "10.9.0.3"}, // of another subnet
		{"10.9.0.1", "10.9.0.4"}, // the gateway
	} {
		box, _ := w.netns()
		ep := w.connect("front", box, engine.ConnectOptions{Prefer: []netip.Addr{netip.MustParseAddr(c.prefer)}})
		if got := ep.Addr4().String(); got != c.want {
			t.Errorf("prefer %s: %s, want %s", c.prefer, got, c.want)
		}
	}
	w.clean()
}

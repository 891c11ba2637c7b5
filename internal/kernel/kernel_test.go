package kernel

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"berth"
	"berth/internal/netns"
	"berth/internal/nettest"
	"berth/internal/plan"
)

// A world is a kernel on a test host, with sandboxes that are there until they
// are ended.
type world struct {
	*Kernel
	host *nettest.Host

	mu    sync.Mutex // guards there: Apply may look up beside a test
	there map[plan.Place]*netns.NS
}

func newWorld(t testing.TB, sandboxes ...plan.Place) *world {
	t.Helper()
	w := &world{host: nettest.NewHost(t), there: map[plan.Place]*netns.NS{}}
	for _, s := range sandboxes {
		w.there[s] = newNS(t)
	}
	var err error
	if w.Kernel, err = Open(w.host.NS(), Options{Store: "test", Lookup: w.lookup}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Kernel.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return w
}

func (w *world) lookup(p plan.Place) (*netns.NS, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	ns, ok := w.there[p]
	if !ok {
		return nil, fmt.Errorf("namespace of %s: %w", p, os.ErrNotExist)
	}
	return netns.Open(fmt.Sprintf("/proc/self/fd/%d", ns.FD()))
}

// end makes a sandbox's namespace gone.
func (w *world) end(p plan.Place) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.there, p)
}

// newNS makes a namespace that lives until the test ends.
func newNS(t testing.TB) *netns.NS {
	t.Helper()
	type made struct {
		ns  *netns.NS
		err error
	}
	done := make(chan made, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		var ns *netns.NS
		if err == nil {
			ns, err = netns.Current()
		}
		done <- made{ns, err}
	}()
	m := <-done
	if m.err != nil {
		t.Fatalf("make a namespace: %v", m.err)
	}
	t.Cleanup(func() { m.ns.Close() })
	return m.ns
}

// apply does steps twice: the second time must change nothing and be no error.
func (w *world) apply(t testing.TB, steps ...plan.Step) {
	t.Helper()
	for _, when := range []string{"first", "second"} {
		if err := w.Apply(t.Context(), steps); err != nil {
			t.Fatalf("%s time: %v", when, err)
		}
	}
}

func (w *world) read(t testing.TB, sysctls ...plan.SysctlKey) plan.State {
	t.Helper()
	places := []plan.Place{plan.Host}
	w.mu.Lock()
	places = append(places, slices.Collect(maps.Keys(w.there))...)
	w.mu.Unlock()
	s, err := w.Read(t.Context(), places, sysctls)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// become applies what leads from the state that is read to want, and checks
// that a look then finds want.
func (w *world) become(t testing.TB, want plan.State) {
	t.Helper()
	sysctls := slices.Collect(maps.Keys(want.Sysctls))
	w.apply(t, plan.Steps(plan.Diff(w.read(t, sysctls...), want))...)
	if d := plan.Diff(w.read(t, sysctls...), want); !d.Empty() {
		t.Errorf("after Apply: (-missing +too much)\n%s", cmp.Diff(d.Put, d.Drop, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })))
	}
}

// id makes an id that starts as it is named.
func id(s string) string { return s + strings.Repeat("0", 64-len(s)) }

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func bridgeNet(name string, v4, v6 string) berth.Network {
	n := berth.Network{
		ID: id(fmt.Sprintf("%x", name)), Name: name, Driver: berth.Bridge, HostEnd: true, Masquerade: true,
		MTU: 1500, Bridge: "bt-" + name, Owned: true,
	}
	for _, s := range []string{v4, v6} {
		if s != "" {
			p := prefix(s)
			n.Subnets = append(n.Subnets, berth.Subnet{Prefix: p, Gateway: p.Addr().Next()})
		}
	}
	return n
}

func attachment(n berth.Network, sandbox plan.Place, slot int, addrs ...string) plan.Attachment {
	e := berth.Endpoint{
		ID: id(fmt.Sprintf("%x%02x", string(sandbox)+n.Name, slot)), Network: n.ID, Sandbox: string(sandbox),
		Interface: fmt.Sprintf("eth%d", slot), Slot: slot, MAC: berth.MAC{2, 0, 0, 0, byte(slot), sandbox[0]},
	}
	for _, a := range addrs {
		e.Addrs = append(e.Addrs, prefix(a))
	}
	return plan.Attachment{Endpoint: e, Network: n}
}

// whole is a host with one of everything: networks of one and of both
// families, a link with a host end, a wire between sandboxes, a sandbox with
// several legs, ports of every kind.
func whole() plan.State {
	a, b := bridgeNet("a", "10.9.0.0/24", "fd00:9::/64"), bridgeNet("b", "10.8.0.0/24", "")
	b.Isolated, b.MTU = true, 1400
	link := bridgeNet("l", "10.7.0.0/24", "fd00:7::/64")
	link.Driver, link.Bridge = berth.Link, ""
	wire := link
	wire.ID, wire.Name, wire.HostEnd = id("aa"), "w", false
	c1 := []plan.Attachment{
		attachment(a, "c1", 0, "10.9.0.2/24", "fd00:9::2/64"),
		attachment(b, "c1", 1, "10.8.0.2/24"),
		attachment(link, "c1", 2, "10.7.0.2/24", "fd00:7::2/64"),
		attachment(wire, "c1", 3, "10.7.1.1/24"),
	}
	d2 := []plan.Attachment{
		attachment(a, "d2", 0, "10.9.0.3/24", "fd00:9::3/64"),
		attachment(wire, "d2", 3, "10.7.1.2/24"),
	}
	c1[3].Other, d2[1].Other = &d2[1].Endpoint, &c1[3].Endpoint
	c1[2].Published = true
	port := func(p berth.Protocol, host, to string, n uint16) plan.State {
		return plan.Ports("c1", berth.Port{PortKey: berth.PortKey{Protocol: p, HostIP: addr(host), HostPort: n}, To: netip.AddrPortFrom(addr(to), 80)})
	}
	return plan.Sum(
		plan.Base(true, true, plan.Uplinks{V4: []string{"uplink0"}, V6: []string{"uplink0"}}),
		plan.Network(a, true), plan.Network(b, false), plan.Network(link, false), plan.Network(wire, false),
		plan.Sandbox("c1", c1), plan.Sandbox("d2", d2),
		port(berth.TCP, "0.0.0.0", "10.9.0.2", 8080), port(berth.UDP, "::", "fd00:9::2", 53),
		port(berth.SCTP, "192.0.2.1", "10.7.0.2", 99),
	)
}

// TestReadIsWhatWasApplied: what the plan wants is what a look finds, and with
// all of it dropped nothing is left.
func TestReadIsWhatWasApplied(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "c1", "d2")
	w.become(t, whole())
	w.become(t, plan.State{})
	left, err := w.host.Leftovers()
	if err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

// TestHalf: applying any number of the steps and then all of them comes to the
// same end.
func TestHalf(t *testing.T) {
	t.Parallel()
	steps := plan.Steps(plan.Diff(plan.State{}, whole()))
	for n := 0; n < len(steps); n += 9 {
		w := newWorld(t, "c1", "d2")
		if err := w.Apply(t.Context(), steps[:n]); err != nil {
			t.Fatal(err)
		}
		w.become(t, whole())
	}
}

func TestDropsAreForgiving(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "c1", "d2")
	// What never was.
	down := plan.Steps(plan.Diff(whole(), plan.State{}))
	down = slices.DeleteFunc(down, func(s plan.Step) bool {
		tx, ok := s.(plan.Transaction) // of elements: the generation tells when belief is wrong
		return ok && !tx.Remove
	})
	w.apply(t, down...)
	// What goes with its namespaces, between two steps.
	w.apply(t, plan.Steps(plan.Diff(plan.State{}, whole()))...)
	w.end("c1")
	w.end("d2")
	w.apply(t, down...)
	if left, err := w.host.Leftovers(); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

func TestPutInASandboxThatIsGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "c1")
	w.apply(t, plan.Steps(plan.Diff(plan.State{}, plan.Sum(plan.Base(true, false, plan.Uplinks{}), plan.Network(bridgeNet("a", "10.9.0.0/24", ""), false))))...)
	w.end("c1")
	n := bridgeNet("a", "10.9.0.0/24", "")
	in := plan.LinkKey{Place: "c1", Name: "eth0"}
	host := plan.Link{Kind: plan.VethLink, Alias: plan.Alias(id("ab")), MTU: 1500, Up: true, Peer: in, Master: n.Bridge}
	for _, s := range []plan.Step{
		plan.PutLink{Key: plan.LinkKey{Name: "btab"}, Link: host, Inside: plan.Link{Kind: plan.VethLink, Alias: host.Alias}},
		plan.UpLink{Key: in},
		plan.PutAddr{Key: plan.AddrKey{Link: in, Prefix: prefix("10.9.0.2/24")}},
		plan.PutRoute{Key: plan.RouteKey{Place: "c1", Table: plan.TableMain, Dst: prefix("0.0.0.0/0"), Dev: "eth0"}},
		plan.PutRule{Key: plan.RuleKey{Place: "c1", From: prefix("10.9.0.2/32"), Table: 9800, Priority: 9800}},
		plan.SetSysctl{Key: plan.SysctlKey{Place: "c1", Path: "net/ipv4/conf/eth0/forwarding"}, Value: "0"},
	} {
		err := w.Apply(t.Context(), []plan.Step{s})
		var op *OpError
		if !errors.Is(err, berth.ErrNotFound) || !errors.As(err, &op) || !strings.Contains(err.Error(), "sandbox c1: its namespace is gone") {
			t.Errorf("%T: %v", s, err)
		}
	}
	if names, _ := w.LinkNames(plan.Host); names["btab"] {
		t.Error("a host end without a sandbox is left")
	}
}

func TestErrorsTellWhatWhereAndWhy(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "c1")
	for want, s := range map[string]plan.Step{
		"put address 10.9.0.2/24 on eth7 in sandbox c1: no such device":                            plan.PutAddr{Key: plan.AddrKey{Link: plan.LinkKey{Place: "c1", Name: "eth7"}, Prefix: prefix("10.9.0.2/24")}},
		"put route 10.0.0.0/8 dev lo in sandbox c1: network is down: Device for nexthop is not up": plan.PutRoute{Key: plan.RouteKey{Place: "c1", Table: plan.TableMain, Dst: prefix("10.0.0.0/8"), Dev: "lo"}},
		"put route 10.0.0.0/8 dev lo: network is unreachable: Nexthop has invalid gateway":         plan.PutRoute{Key: plan.RouteKey{Table: plan.TableMain, Dst: prefix("10.0.0.0/8"), Dev: "lo"}, Route: plan.Route{Gateway: addr("10.0.0.1")}},
		"set sysctl net/ipv4/conf/eth7/forwarding to 0 in sandbox c1: no such file or directory":   plan.SetSysctl{Key: plan.SysctlKey{Place: "c1", Path: "net/ipv4/conf/eth7/forwarding"}, Value: "0"},
		"put link bt1: bridge bt-none: no such device":                                             plan.PutLink{Key: plan.LinkKey{Name: "bt1"}, Link: plan.Link{Kind: plan.VethLink, Alias: "berth:1", Master: "bt-none", Peer: plan.LinkKey{Place: "c1", Name: "eth0"}}, Inside: plan.Link{Kind: plan.VethLink, Alias: "berth:1"}},
		"put link bt2: invalid argument: mtu greater than device maximum":                          plan.PutLink{Key: plan.LinkKey{Name: "bt2"}, Link: plan.Link{Kind: plan.BridgeLink, Alias: "berth:2", MTU: 1 << 20}},
	} {
		if err := w.Apply(t.Context(), []plan.Step{s}); err == nil || err.Error() != want {
			t.Errorf("\n got %v\nwant %s", err, want)
		}
	}
}

package kernel

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth"
	"berth/internal/plan"
)

var (
	bridgeKey = plan.LinkKey{Name: "bt-a"}
	outKey    = plan.LinkKey{Name: "bt1"}
	inKey     = plan.LinkKey{Place: "c1", Name: "eth0"}
)

func putBridge() plan.PutLink {
	return plan.PutLink{Key: bridgeKey, Link: plan.Link{Kind: plan.BridgeLink, Alias: "berth:a", MTU: 1500, MAC: berth.MAC{2, 1}, Up: true}}
}

func putPair(out, in plan.LinkKey, alias string) plan.PutLink {
	return plan.PutLink{
		Key:    out,
		Link:   plan.Link{Kind: plan.VethLink, Alias: alias, MTU: 1500, Up: true, Peer: in, Master: bridgeKey.Name, Hairpin: true, NoLinkLocal: true},
		Inside: plan.Link{Kind: plan.VethLink, Alias: alias, MTU: 1500, MAC: berth.MAC{2, 2}, Peer: out},
	}
}

// check reports where the links of a pair differ from what was put.
func (w *world) check(t *testing.T, s plan.PutLink) {
	t.Helper()
	have := w.read(t)
	for k, want := range map[plan.LinkKey]plan.Link{s.Key: s.Link, s.Link.Peer: s.Inside} {
		if k == (plan.LinkKey{}) || want.Kind == "" {
			continue
		}
		if have.Links[k] != want {
			t.Errorf("%v\n got %+v\nwant %+v", k, have.Links[k], want)
		}
	}
}

func (w *world) index(t testing.TB, k plan.LinkKey) int {
	t.Helper()
	all, err := w.Links(k.Place)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range all {
		if l.Name == k.Name {
			return l.Index
		}
	}
	return 0
}

// TestLinkIsBroughtToShape: a link that stands keeps standing while its
// properties change.
func TestLinkIsBroughtToShape(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "c1")
	p := putPair(outKey, inKey, "berth:1")
	w.apply(t, putBridge(), p)
	was := w.index(t, outKey)
	for _, c := range []struct {
		name   string
		change func()
	}{
		{"MTU", func() { p.Link.MTU, p.Inside.MTU = 1400, 1400 }},
		{"isolated", func() { p.Link.Isolated = true }},
		{"no hairpin", func() { p.Link.Hairpin = false }},
		{"MAC", func() { p.Inside.MAC = berth.MAC{2, 3} }},
		{"down", func() { w.host.Run(t, "ip", "link", "set", "bt1", "down") }},
		{"no master", func() { w.host.Run(t, "ip", "link", "set", "bt1", "nomaster") }},
		{"its master", func() { p.Link.Master, p.Link.Isolated, p.Link.Hairpin, p.Link.NoLinkLocal = "", false, false, false }},
	} {
		c.change()
		w.apply(t, p)
		w.check(t, p)
		if t.Failed() {
			t.Fatalf("after a change of %s", c.name)
		}
	}
	if is := w.index(t, outKey); is != was {
		t.Errorf("made anew: index %d, was %d", is, was)
	}
	b := putBridge()
	b.Link.MTU, b.Link.MAC = 1300, berth.MAC{2, 9}
	w.apply(t, b)
	w.check(t, b)
}

// TestPairIsMadeAnew: ends that stand elsewhere, or belong to another pair of
// ours, are in nobody's way.
func TestPairIsMadeAnew(t *testing.T) {
	t.Parallel()
	elsewhere := plan.LinkKey{Place: "d2", Name: "eth0"}
	for name, before := range map[string]plan.PutLink{
		"the other end elsewhere":      putPair(outKey, elsewhere, "berth:1"),
		"the first end of another":     putPair(outKey, elsewhere, "berth:2"),
		"the other end of another":     putPair(plan.LinkKey{Name: "bt2"}, inKey, "berth:2"),
		"a bridge of ours of its name": {Key: outKey, Link: plan.Link{Kind: plan.BridgeLink, Alias: "berth:1"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "c1", "d2")
			w.apply(t, putBridge(), before)
			p := putPair(outKey, inKey, "berth:1")
			w.apply(t, p)
			w.check(t, p)
		})
	}
}

func TestForeignLinkIsLeftAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "c1")
	w.host.Run(t, "ip", "link", "add", "bt1", "type", "veth", "peer", "name", "bt-a")
	w.apply(t, plan.PutLink{Key: plan.LinkKey{Name: "bt-b"}, Link: plan.Link{Kind: plan.BridgeLink, Alias: "berth:b"}})
	was := w.index(t, outKey)
	pair := putPair(outKey, inKey, "berth:1")
	pair.Link.Master = "bt-b"
	other := putPair(plan.LinkKey{Name: "bt3"}, plan.LinkKey{Name: "bt-a"}, "berth:3")
	other.Link.Master = "bt-b"
	for _, s := range []plan.PutLink{putBridge(), pair, other} {
		err := w.Apply(t.Context(), []plan.Step{s})
		if !errors.Is(err, berth.ErrExists) || !strings.Contains(err.Error(), "not Berth's") {
			t.Errorf("put %s: %v", s.Key.Name, err)
		}
	}
	w.apply(t, plan.DropLinks{Names: []string{"bt1"}}, plan.DropLinks{Names: []string{"bt1", "bt-a", "lo", "none"}})
	if is := w.index(t, outKey); is != was {
		t.Errorf("index %d, was %d", is, was)
	}
	if s := w.read(t); len(s.Links) != 2 { // bt-b, and lo of c1 is down
		if _, lo := s.Links[plan.LinkKey{Place: "c1", Name: "lo"}]; lo || len(s.Links) != 1 {
			t.Errorf("reads as ours: %v", s.Links)
		}
	}
}

// TestUnfinishedPairIsOurs: a crash between the message that makes a pair and
// the ones that name its owner leaves a pair that is known for ours.
func TestUnfinishedPairIsOurs(t *testing.T) {
	t.Parallel()
	for _, named := range []bool{false, true} {
		t.Run(fmt.Sprintf("inside named %v", named), func(t *testing.T) {
			w := newWorld(t, "c1")
			w.apply(t, putBridge())
			p := putPair(outKey, inKey, "berth:1")
			cut := func() {
				s := w.session()
				defer w.Release()
				if far, err := s.create(w.Kernel.host, p); err != nil {
					t.Fatal(err)
				} else if named {
					if err := far.finish(inKey.Name, p.Inside); err != nil {
						t.Fatal(err)
					}
				}
			}
			cut()
			have := w.read(t)
			if _, ok := have.Links[outKey]; !ok {
				t.Errorf("not read as ours: %v", have.Links)
			}
			w.apply(t, p)
			w.check(t, p)
			w.apply(t, plan.DropLinks{Names: []string{"bt1"}})
			cut()
			w.apply(t, plan.DropLinks{Names: []string{"bt1"}})
			if w.index(t, outKey) != 0 {
				t.Error("not dropped")
			}
		})
	}
}

// TestRenamedLinkIsOurs: a link is known by its alias, whatever its name.
func TestRenamedLinkIsOurs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "c1")
	want := plan.State{Links: map[plan.LinkKey]plan.Link{}}
	b, p := putBridge(), putPair(outKey, inKey, "berth:1")
	want.Links[b.Key], want.Links[p.Key], want.Links[p.Link.Peer] = b.Link, p.Link, p.Inside
	w.become(t, want)
	// Before Linux 6.2 a link that is up keeps its name.
	w.host.Run(t, "sh", "-c", "ip link set bt1 down && ip link set bt1 name wan0 && ip link set wan0 up")
	w.become(t, want)
	if names, _ := w.LinkNames(plan.Host); names["wan0"] {
		t.Error("the renamed link is left")
	}
}

func TestManyLinksGoTogether(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "c1")
	w.apply(t, putBridge())
	w.host.Run(t, "ip", "link", "add", "other", "type", "veth", "peer", "name", "bystander")
	names := []string{"gone", "other"}
	var steps []plan.Step
	for i := range 50 {
		p := putPair(plan.LinkKey{Name: fmt.Sprintf("bt%d", i)}, plan.LinkKey{Place: "c1", Name: fmt.Sprintf("eth%d", i)}, fmt.Sprintf("berth:%d", i))
		steps, names = append(steps, p), append(names, p.Key.Name)
	}
	if err := w.Apply(t.Context(), steps); err != nil {
		t.Fatal(err)
	}
	w.apply(t, plan.DropLinks{Names: names})
	left, err := w.LinkNames(plan.Host)
	if err != nil || len(left) != 4 || !left["other"] || !left["bystander"] || !left["bt-a"] {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestBothEndsDropped: naming both ends of one pair is no error although the
// second goes with the first.
func TestBothEndsDropped(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "c1")
	p := putPair(plan.LinkKey{Name: "bt1"}, plan.LinkKey{Name: "bt2"}, "berth:1")
	p.Link.Master, p.Link.Hairpin, p.Link.NoLinkLocal = "", false, false
	w.apply(t, p, plan.DropLinks{Names: []string{"bt1", "bt2"}})
	if left, _ := w.LinkNames(plan.Host); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}

// TestEndsHaveTwoIndexes: with one index on both ends the kernel notices the
// carrier up to a second late.
func TestEndsHaveTwoIndexes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "c1")
	w.apply(t, putBridge(), putPair(outKey, inKey, "berth:1"))
	if a, b := w.index(t, outKey), w.index(t, inKey); a == b || a == 0 || b == 0 {
		t.Errorf("indexes %d and %d", a, b)
	}
}

// TestPairCarriesAtOnce: when the inside end is up, so are the host end and the
// bridge, with no wait for the kernel's worker. A dump does not do its work.
func TestPairCarriesAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "c1")
	if release, err := os.ReadFile("/proc/sys/kernel/osrelease"); err != nil || !atLeast(string(release), 6, 18) {
		t.Skip("it was seen on Linux 6.18, which notices a carrier at a look")
	}
	if err := w.Apply(t.Context(), []plan.Step{putBridge()}); err != nil {
		t.Fatal(err)
	}
	h, err := w.Kernel.host.handle()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		p := putPair(plan.LinkKey{Name: fmt.Sprintf("bt%d", i)}, plan.LinkKey{Place: "c1", Name: fmt.Sprintf("eth%d", i)}, fmt.Sprintf("berth:%d", i))
		if err := w.Apply(t.Context(), []plan.Step{p, plan.UpLink{Key: p.Link.Peer}}); err != nil {
			t.Fatal(err)
		}
		all, err := h.LinkList()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range all {
			if a := l.Attrs(); (a.Name == p.Key.Name || a.Name == bridgeKey.Name) && a.OperState != netlink.OperUp {
				t.Fatalf("pair %d: %s is %s", i, a.Name, a.OperState)
			}
		}
	}
}

// TestBridgeKeepsItsMTU: left to itself, a bridge takes that of its ports, and
// without one 1500.
func TestBridgeKeepsItsMTU(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "c1")
	for _, mtu := range []int{1400, 1500, 9000} {
		bridge, pair := putBridge(), putPair(outKey, inKey, "berth:1")
		bridge.Link.MTU = mtu
		w.apply(t, bridge)
		for _, port := range []int{1400, 9000} {
			pair.Link.MTU, pair.Inside.MTU = port, port
			w.apply(t, pair, plan.DropLinks{Names: []string{outKey.Name}})
			if have := w.read(t).Links[bridgeKey].MTU; have != mtu {
				t.Errorf("after a port of %d, a bridge of %d has %d", port, mtu, have)
			}
		}
		w.apply(t, plan.DropLinks{Names: []string{bridgeKey.Name}})
	}
}

func TestBridgeIsFull(t *testing.T) {
	if testing.Short() {
		t.Skip("makes a thousand pairs")
	}
	t.Parallel()
	w := newWorld(t, "c1")
	w.apply(t, putBridge())
	const limit = 1023
	var names []string
	for i := range limit + 1 {
		p := putPair(plan.LinkKey{Name: fmt.Sprintf("bt%d", i)}, plan.LinkKey{Place: "c1", Name: fmt.Sprintf("eth%d", i)}, fmt.Sprintf("berth:%d", i))
		err := w.Apply(t.Context(), []plan.Step{p})
		if i < limit {
			names = append(names, p.Key.Name)
			if err != nil {
				t.Fatal(err)
			}
			continue
		}
		if !errors.Is(err, berth.ErrExhausted) || !errors.Is(err, unix.EXFULL) || !strings.Contains(err.Error(), "a bridge takes 1023 ports") {
			t.Errorf("the %dth: %v", i+1, err)
		}
	}
	if left, _ := w.LinkNames(plan.Host); left[fmt.Sprintf("bt%d", limit)] {
		t.Error("a pair that found no place is left")
	}
	if err := w.Apply(t.Context(), []plan.Step{plan.DropLinks{Names: names}}); err != nil {
		t.Error(err)
	}
}

func TestUplinks(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "c1")
	w.host.LAN(t)
	w.apply(t, putBridge(), putPair(outKey, inKey, "berth:1"))
	v4, v6, err := w.Uplinks()
	if err != nil || !slices.Equal(v4, []string{"uplink0"}) || !slices.Equal(v6, v4) {
		t.Errorf("uplinks %q and %q, %v", v4, v6, err)
	}
}

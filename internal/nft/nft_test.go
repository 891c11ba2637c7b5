package nft

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth"
	"berth/internal/nettest"
	"berth/internal/plan"
)

func dial(t testing.TB, h *nettest.Host) *Conn {
	t.Helper()
	c, err := Dial(h.NS())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func apply(t testing.TB, c *Conn, tx plan.Transaction) {
	t.Helper()
	if err := c.Apply(tx, "abc"); err != nil {
		t.Fatal(err)
	}
}

func element(set, key, value string) plan.Element {
	return plan.Element{ElemKey: plan.ElemKey{Set: set, Key: key}, Elem: plan.Elem{Value: value, Comment: "owner of " + key}}
}

// TestTableIsTheText: the table made by messages is the table of the text, as
// listed and as bytecode.
func TestTableIsTheText(t *testing.T) {
	t.Parallel()
	text, ours := nettest.NewHost(t), nettest.NewHost(t)
	file := t.TempDir() + "/ruleset.nft"
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(Ruleset(), "store ID", "store abc")), 0o600); err != nil {
		t.Fatal(err)
	}
	text.Run(t, "nft", "-f", file)
	apply(t, dial(t, ours), plan.Transaction{Rebuild: true})
	if d := cmp.Diff(text.Run(t, "nft", "list", "ruleset"), ours.Run(t, "nft", "list", "ruleset")); d != "" {
		t.Errorf("listing (-text +ours):\n%s", d)
	}
	if d := cmp.Diff(bytecode(text.Run(t, "nft", "--debug=netlink", "list", "ruleset")), bytecode(ours.Run(t, "nft", "--debug=netlink", "list", "ruleset"))); d != "" {
		t.Errorf("bytecode (-text +ours):\n%s", d)
	}
}

// bytecode drops the handle numbers.
func bytecode(s string) string {
	var out []string
	for l := range strings.Lines(s) {
		if f := strings.Fields(l); len(f) > 2 && f[0] == "inet" && f[1] == "berth" {
			l = strings.Join(f[:3], " ") + "\n"
		}
		out = append(out, l)
	}
	// The elements of an anonymous set are listed in the order of their hashes.
	slices.Sort(out)
	return strings.Join(out, "")
}

func everything() []plan.Element {
	return []plan.Element{
		element("bridges", "bt-a", ""), element("within", "bt-a . bt-a", ""), element("closed", "bt-b", ""), element("deaf", "bt-b", ""),
		element("open", "bt-c", ""), element("uplinks", "ipv4 . eth0", ""), element("uplinks", "ipv6 . eth0", ""),
		element("masq4", "10.9.0.0/24", ""), element("masq4", "10.9.1.0/24", ""), element("masq4", "255.255.255.0/24", ""), element("masq6", "fd00::/64", ""),
		element("shield4", "10.9.0.7/32", ""), element("shield6", "fd00::/64", ""), element("shield6", "fd00:0:0:1::/64", ""),
		element("hairpin4", "10.9.0.0/24 . bt-a", ""), element("hairpin6", "fd00::/64 . bt-a", ""), element("hairpin4", "10.9.0.7/32 . bt-b", ""),
		element("refused_from", "bt-a", ""), element("refused_to", "bt-a", ""),
		element("publish4", "192.0.2.1 . tcp . 8080", "10.9.0.2 . 80"), element("publish6", "2001:db8::1 . udp . 53", "fd00::2 . 5353"),
		element("publish_any4", "tcp . 8080", "10.9.0.2 . 80"), element("publish_any6", "sctp . 9", "fd00::2 . 9"),
	}
}

func asMap(els []plan.Element) map[plan.ElemKey]plan.Elem {
	m := map[plan.ElemKey]plan.Elem{}
	for _, e := range els {
		m[e.ElemKey] = e.Elem
	}
	return m
}

func TestReadReturnsWhatWasPut(t *testing.T) {
	t.Parallel()
	h := nettest.NewHost(t)
	c := dial(t, h)
	if m, err := c.Read(); err != nil || len(m) > 0 {
		t.Fatalf("without a table: %v, %v", m, err)
	}
	apply(t, c, plan.Transaction{Rebuild: true, Put: everything()})
	got, err := c.Read()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(asMap(everything()), got); d != "" {
		t.Errorf("-put +read:\n%s", d)
	}
	tab, err := c.Table()
	if err != nil || tab != (Table{Present: true, Exact: true, Store: "abc"}) {
		t.Errorf("table: %+v, %v", tab, err)
	}
	apply(t, c, plan.Transaction{Drop: everything()})
	if got, err = c.Read(); err != nil || len(got) > 0 {
		t.Errorf("after dropping all: %v, %v", got, err)
	}
	apply(t, c, plan.Transaction{Remove: true})
	apply(t, c, plan.Transaction{Remove: true})
	if tab, err = c.Table(); err != nil || tab.Present {
		t.Errorf("after removing the table: %+v, %v", tab, err)
	}
}

func TestForeignIntervalCanBeDropped(t *testing.T) {
	t.Parallel()
	h := nettest.NewHost(t)
	c := dial(t, h)
	apply(t, c, plan.Transaction{Rebuild: true})
	h.Run(t, "nft", "add", "element", "inet", "berth", "masq4", "{ 10.0.0.3-10.0.0.9 }")
	got, err := c.Read()
	if err != nil || len(got) != 1 {
		t.Fatalf("%v, %v", got, err)
	}
	for k, e := range got {
		if k.Key != "10.0.0.3-10.0.0.9" {
			t.Errorf("read as %q", k.Key)
		}
		apply(t, c, plan.Transaction{Drop: []plan.Element{{ElemKey: k, Elem: e}}})
	}
}

func TestTableIsNotExactAfterSomebodyElse(t *testing.T) {
	t.Parallel()
	for _, change := range []string{
		"add rule inet berth forward accept", "insert rule inet berth refuse accept", "flush chain inet berth raw",
		"add chain inet berth extra", "add set inet berth extra { type ipv4_addr; }", "chain inet berth forward { policy drop; }",
	} {
		t.Run(change, func(t *testing.T) {
			h := nettest.NewHost(t)
			c := dial(t, h)
			apply(t, c, plan.Transaction{Rebuild: true})
			before, err := c.Generation()
			if err != nil {
				t.Fatal(err)
			}
			h.Run(t, "nft", change)
			if after, err := c.Generation(); err != nil || after == before {
				t.Errorf("generation %d, then %d, %v", before, after, err)
			}
			if tab, err := c.Table(); err != nil || tab.Exact {
				t.Errorf("%+v, %v", tab, err)
			}
		})
	}
}

func TestMissingElementIsDrift(t *testing.T) {
	t.Parallel()
	c := dial(t, nettest.NewHost(t))
	apply(t, c, plan.Transaction{Rebuild: true, Put: everything()})
	before, _ := c.Read()
	err := c.Apply(plan.Transaction{Drop: []plan.Element{element("publish_any4", "tcp . 1", "10.9.0.2 . 80")}, Put: []plan.Element{element("bridges", "bt-z", "")}}, "abc")
	if !errors.Is(err, berth.ErrDrifted) {
		t.Errorf("dropping what is not there: %v", err)
	}
	err = c.Apply(plan.Transaction{Put: []plan.Element{element("publish_any4", "tcp . 8080", "10.9.0.3 . 80")}}, "abc")
	if !errors.Is(err, berth.ErrDrifted) {
		t.Errorf("putting over another value: %v", err)
	}
	if after, _ := c.Read(); !maps.Equal(before, after) {
		t.Error("a refused transaction changed something")
	}
	retarget := plan.Transaction{Drop: []plan.Element{element("publish_any4", "tcp . 8080", "10.9.0.2 . 80")}, Put: []plan.Element{element("publish_any4", "tcp . 8080", "10.9.0.3 . 80")}}
	apply(t, c, retarget)
	if after, _ := c.Read(); after[plan.ElemKey{Set: "publish_any4", Key: "tcp . 8080"}].Value != "10.9.0.3 . 80" {
		t.Error("not retargeted")
	}
}

func TestTenThousandPorts(t *testing.T) {
	t.Parallel()
	h := nettest.NewHost(t)
	c := dial(t, h)
	apply(t, c, plan.Transaction{Rebuild: true})
	var all []plan.Element
	for i := range 20000 {
		all = append(all, plan.Element{
			ElemKey: plan.ElemKey{Set: "publish_any4", Key: fmt.Sprintf("tcp . %d", i+1)},
			Elem:    plan.Elem{Value: "10.9.0.2 . 80", Comment: strings.Repeat("x", 200)},
		})
	}
	apply(t, c, plan.Transaction{Put: all})
	if got, err := c.Read(); err != nil || len(got) != len(all) {
		t.Log(strings.Count(h.Run(t, "nft", "list", "map", "inet", "berth", "publish_any4"), "comment"))
		t.Fatalf("%d of %d are there, %v", len(got), len(all), err)
	}
	apply(t, c, plan.Transaction{Drop: all})
	if got, err := c.Read(); err != nil || len(got) != 0 {
		t.Fatalf("%d are left, %v", len(got), err)
	}
}

func TestTwoConnsAtOnce(t *testing.T) {
	t.Parallel()
	var wg sync.WaitGroup
	for range 2 {
		c := dial(t, nettest.NewHost(t))
		wg.Go(func() {
			for range 5 {
				if err := c.Apply(plan.Transaction{Rebuild: true, Put: everything()}, "abc"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

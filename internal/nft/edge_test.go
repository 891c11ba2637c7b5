package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"berth"
	"berth/internal/nettest"
	"berth/internal/plan"
)

// loadText loads ruleset.nft with nft.
func loadText(t *testing.T, h *nettest.Host, change func(string) string) {
	t.Helper()
	file := t.TempDir() + "/ruleset.nft"
	if err := os.WriteFile(file, []byte(change(strings.ReplaceAll(Ruleset(), "store ID", "store abc"))), 0o600); err != nil {
		t.Fatal(err)
	}
	h.Run(t, "nft", "-f", file)
}

func TestTextLoadedByNFTIsExact(t *testing.T) {
	t.Parallel()
	h := nettest.NewHost(t)
	loadText(t, h, func(s string) string { return s })
	if tab, err := dial(t, h).Table(); err != nil || tab != (Table{Present: true, Exact: true, Store: "abc"}) {
		t.Errorf("%+v, %v", tab, err)
	}
}

// TestAnyOtherTextIsNotExact changes one word of the table.
func TestAnyOtherTextIsNotExact(t *testing.T) {
	t.Parallel()
	for _, tt := range [][2]string{
		{"type != { broadcast, multicast, anycast }", "type != { broadcast, multicast, unicast }"},
		{"type != { broadcast, multicast, anycast }", "type != { broadcast, multicast, anycast, unicast }"},
		{"set closed {\n\t\ttype ifname", "set closed {\n\t\ttype ifname\n\t\tsize 7"},
		{"set closed {\n\t\ttype ifname", "set closed {\n\t\ttype ifname\n\t\ttimeout 1h"},
		{"set closed {\n\t\ttype ifname", "set closed {\n\t\ttype ifname\n\t\tcounter"},
		{"set masq4 {\n\t\ttype ipv4_addr\n\t\tflags interval", "set masq4 {\n\t\ttype ipv4_addr"},
		{"set refused_to {\n\t\ttype ifname\n\t\tcounter", "set refused_to {\n\t\ttype ifname"},
		{"priority raw", "priority -299"},
		{"hook output priority -100", "hook prerouting priority -100"},
		{"ct direction reply", "ct direction original"},
		{"ct status dnat accept", "ct status snat accept"},
		{"ip daddr 127.0.0.0/8", "ip daddr 127.0.0.0/7"},
		{"fib saddr . iif oif missing jump refuse", "fib saddr . iif oif missing counter jump refuse"},
		{"iifname \"lo\" return", "iifname \"lo\" meta mark 1-5 return"},
		{"ip saddr @masq4 masquerade", "ip saddr @masq4 masquerade random"},
	} {
		if !strings.Contains(Ruleset(), tt[0]) {
			t.Errorf("the ruleset has no %q", tt[0])
			continue
		}
		t.Run(tt[1], func(t *testing.T) {
			h := nettest.NewHost(t)
			loadText(t, h, func(s string) string { return strings.Replace(s, tt[0], tt[1], 1) })
			if tab, err := dial(t, h).Table(); err != nil || !tab.Present || tab.Exact {
				t.Errorf("%+v, %v", tab, err)
			}
		})
	}
}

func TestDormantTableIsNotExact(t *testing.T) {
	t.Parallel()
	h := nettest.NewHost(t)
	c := dial(t, h)
	apply(t, c, plan.Transaction{Rebuild: true, Put: everything()})
	h.Run(t, "nft", "add table inet berth { flags dormant; }")
	if tab, err := c.Table(); err != nil || tab.Exact {
		t.Errorf("%+v, %v", tab, err)
	}
	apply(t, c, plan.Transaction{Rebuild: true, Put: everything()})
	if tab, err := c.Table(); err != nil || !tab.Exact {
		t.Errorf("after a rebuild: %+v, %v", tab, err)
	}
}

// TestStrangeSetIsHealedByRebuild: a table with sets of other types can be
// looked at, read and made anew.
func TestStrangeSetIsHealedByRebuild(t *testing.T) {
	t.Parallel()
	h := nettest.NewHost(t)
	h.Run(t, "nft", "add table inet berth; add set inet berth masq4 { typeof meta cpu; flags interval; elements = { 1-2 }; }; add set inet berth bridges { type mark; elements = { 3 }; }")
	c := dial(t, h)
	if tab, err := c.Table(); err != nil || !tab.Present || tab.Exact {
		t.Errorf("%+v, %v", tab, err)
	}
	if m, err := c.Read(); err != nil || len(m) > 0 {
		t.Errorf("%v, %v", m, err)
	}
	apply(t, c, plan.Transaction{Rebuild: true, Put: everything()})
	if m, err := c.Read(); err != nil || cmp.Diff(asMap(everything()), m) != "" {
		t.Errorf("%v, %v", m, err)
	}
}

// TestWhatOthersPutCanBeDropped: whatever Read returns, Apply drops.
func TestWhatOthersPutCanBeDropped(t *testing.T) {
	t.Parallel()
	h := nettest.NewHost(t)
	c := dial(t, h)
	apply(t, c, plan.Transaction{Rebuild: true})
	for set, text := range map[string]string{
		"masq4":        "{ 10.0.0.3-10.0.0.9, 10.0.0.10-10.0.0.11, 255.255.255.250-255.255.255.255, 0.0.0.0-0.0.0.5 }",
		"masq6":        "{ fd00::1, ff00::/8 }",
		"shield4":      "{ 1.2.3.4 comment \"mine\" }",
		"hairpin4":     "{ 10.0.0.5 . \"x\", 10.0.1.0/24 . \"x\", 10.0.2.3-10.0.2.9 . \"y\" }",
		"hairpin6":     "{ fd00::5-fd00::9 . \"x\" }",
		"uplinks":      "{ 7 . \"z\" }",
		"publish_any4": "{ dccp . 5 : 1.2.3.4 . 5, icmp . 0 : 1.2.3.4 . 0 }",
	} {
		h.Run(t, "nft", "add", "element", "inet", "berth", set, text)
	}
	got, err := c.Read()
	if err != nil {
		t.Fatal(err)
	}
	var all []plan.Element
	for k, e := range got {
		all = append(all, plan.Element{ElemKey: k, Elem: e})
	}
	if len(all) != 14 {
		t.Errorf("read %d: %v", len(all), got)
	}
	slices.SortFunc(all, func(a, b plan.Element) int { return strings.Compare(a.Set, b.Set) })
	for _, e := range all {
		if err := c.Apply(plan.Transaction{Drop: []plan.Element{e}}, "abc"); err != nil {
			t.Errorf("%v: %v", e, err)
		}
	}
	if got, err = c.Read(); err != nil || len(got) > 0 {
		t.Errorf("left: %v, %v", got, err)
	}
}

// TestReadAtOnceIsWhole: a hash table that was just filled is still growing.
func TestReadAtOnceIsWhole(t *testing.T) {
	t.Parallel()
	c := dial(t, nettest.NewHost(t))
	for _, n := range []int{7, 60, 200, 499, 700, 1500, 4000} {
		for range 10 {
			put := ports(n)
			apply(t, c, plan.Transaction{Rebuild: true, Put: put})
			if got, err := c.Read(); err != nil || len(got) != n {
				t.Fatalf("%d of %d, %v", len(got), n, err)
			}
		}
	}
}

func ports(n int) (all []plan.Element) {
	for i := range n {
		all = append(all, plan.Element{
			ElemKey: plan.ElemKey{Set: "publish4", Key: fmt.Sprintf("192.0.2.1 . tcp . %d", i+1)},
			Elem:    plan.Elem{Value: fmt.Sprintf("10.9.0.2 . %d", i+1), Comment: "port"},
		})
	}
	return all
}

// TestEdgesOfTheAddressSpace: nft lists what was put as what it is.
func TestEdgesOfTheAddressSpace(t *testing.T) {
	t.Parallel()
	h := nettest.NewHost(t)
	c := dial(t, h)
	for set, keys := range map[string][]string{
		"masq4":   {"0.0.0.0/0"},
		"shield4": {"0.0.0.0/8", "1.0.0.0/8", "255.255.255.254/32", "255.255.255.255/32"},
		"masq6":   {"::/0"},
		"shield6": {"::/128", "::1/128", "ffff:ffff:ffff:ffff::/64"},
	} {
		var all []plan.Element
		for _, k := range keys {
			all = append(all, element(set, k, ""))
		}
		apply(t, c, plan.Transaction{Rebuild: true, Put: all})
		if got, err := c.Read(); err != nil || cmp.Diff(asMap(all), got) != "" {
			t.Errorf("%s: %v, %v", set, got, err)
		}
		list := h.Run(t, "nft", "list", "set", "inet", "berth", set)
		for _, k := range keys {
			if p := netip.MustParsePrefix(k); !strings.Contains(list, strings.TrimSuffix(strings.TrimSuffix(k, "/32"), "/128")+" ") {
				t.Errorf("%v is not in %s", p, list)
			}
		}
		for _, e := range all {
			apply(t, c, plan.Transaction{Drop: []plan.Element{e}})
			apply(t, c, plan.Transaction{Put: []plan.Element{e}})
		}
		apply(t, c, plan.Transaction{Drop: all})
		if got, err := c.Read(); err != nil || len(got) > 0 {
			t.Errorf("%s left: %v, %v", set, got, err)
		}
	}
}

func TestThousandsOfPrefixes(t *testing.T) {
	t.Parallel()
	c := dial(t, nettest.NewHost(t))
	var all []plan.Element
	for i := range 3000 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
		all = append(all, element("shield4", p.String(), ""))
	}
	for i := range 3000 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
		all = append(all, element("hairpin4", p.String()+fmt.Sprintf(" . bt-%d", i), ""))
	}
	apply(t, c, plan.Transaction{Rebuild: true, Put: all})
	got, err := c.Read()
	if err != nil || cmp.Diff(asMap(all), got) != "" {
		t.Errorf("%d of %d, %v", len(got), len(all), err)
	}
	apply(t, c, plan.Transaction{Drop: all})
	if got, err := c.Read(); err != nil || len(got) > 0 {
		t.Errorf("%d left, %v", len(got), err)
	}
}

func TestRefusedElements(t *testing.T) {
	t.Parallel()
	c := dial(t, nettest.NewHost(t))
	apply(t, c, plan.Transaction{Rebuild: true})
	for _, e := range []plan.Element{
		{ElemKey: plan.ElemKey{Set: "bridges", Key: "sixteencharacter"}},
		{ElemKey: plan.ElemKey{Set: "bridges", Key: ""}},
		{ElemKey: plan.ElemKey{Set: "nothing", Key: "a"}},
		{ElemKey: plan.ElemKey{Set: "masq4", Key: "fd00::/64"}},
		{ElemKey: plan.ElemKey{Set: "masq6", Key: "10.0.0.0/8"}},
		{ElemKey: plan.ElemKey{Set: "publish_any4", Key: "tcp . 70000"}, Elem: plan.Elem{Value: "10.9.0.2 . 80"}},
		{ElemKey: plan.ElemKey{Set: "publish_any4", Key: "tcp . 80"}, Elem: plan.Elem{Value: "fd00::2 . 80"}},
		{ElemKey: plan.ElemKey{Set: "publish_any4", Key: "tcp . 80"}},
		{ElemKey: plan.ElemKey{Set: "bridges", Key: "a"}, Elem: plan.Elem{Comment: strings.Repeat("x", 201)}},
	} {
		err := c.Apply(plan.Transaction{Put: []plan.Element{element("bridges", "bt-a", ""), e}}, "abc")
		if err == nil || errors.Is(err, berth.ErrDrifted) {
			t.Errorf("%v: %v", e, err)
		}
	}
	// Nothing of a refused transaction goes with the next.
	apply(t, c, plan.Transaction{Put: []plan.Element{element("bridges", "bt-b", "")}})
	if got, err := c.Read(); err != nil || len(got) != 1 {
		t.Errorf("%v, %v", got, err)
	}
}

// TestLongestElementsFitTheirMessage fills messages with the longest elements
// of every set.
func TestLongestElementsFitTheirMessage(t *testing.T) {
	t.Parallel()
	c := dial(t, nettest.NewHost(t))
	comment := strings.Repeat("c", longestComment)
	var all []plan.Element
	add := func(set, key, value string) {
		all = append(all, plan.Element{ElemKey: plan.ElemKey{Set: set, Key: key}, Elem: plan.Elem{Value: value, Comment: comment}})
	}
	n := 2*perMessage + 1
	for i := range n {
		add("within", fmt.Sprintf("bt-%010d . bt-%010d", i, i), "")
	}
	for i := range n {
		add("hairpin6", fmt.Sprintf("fd00:%x::/64 . bt-%010d", i, i), "")
	}
	for i := range n {
		add("shield6", fmt.Sprintf("fd00:%x::/64", i), "")
	}
	for i := range n {
		add("publish6", fmt.Sprintf("fd00:%x::1 . tcp . 80", i), "fd00::2 . 80")
	}
	for i := range all { // as the codec writes them
		all[i].Key = strings.ReplaceAll(all[i].Key, "fd00:0::", "fd00::")
	}
	apply(t, c, plan.Transaction{Rebuild: true, Put: all})
	got, err := c.Read()
	if err != nil || cmp.Diff(asMap(all), got) != "" {
		t.Errorf("%d of %d, %v", len(got), len(all), err)
	}
}

// TestCountersCount: who addresses a shielded network from outside, and what a
// network is refused, is counted at its elements.
func TestCountersCount(t *testing.T) {
	t.Parallel()
	h := nettest.NewHost(t)
	lan := h.LAN(t)
	h.Run(t, "ip", "addr", "add", "10.99.0.1/24", "dev", "lo")
	lan.Run(t, "ip", "route", "add", "10.99.0.0/24", "via", nettest.HostAddr4)
	c := dial(t, h)
	apply(t, c, plan.Transaction{Rebuild: true, Put: []plan.Element{element("shield4", "10.99.0.0/24", "")}})
	if err := nettest.Ping(t, lan, netip.MustParseAddr("10.99.0.1"), 100*time.Millisecond); err == nil {
		t.Error("a shielded address answers")
	}
	got, err := c.Counters()
	if err != nil || got[plan.ElemKey{Set: "shield4", Key: "10.99.0.0/24"}].Packets == 0 {
		t.Errorf("%v, %v", got, err)
	}
	const dev = "uplink0"
	apply(t, c, plan.Transaction{Rebuild: true, Put: []plan.Element{
		element("bridges", dev, ""), element("deaf", dev, ""), element("refused_from", dev, ""), element("refused_to", dev, ""),
	}})
	if err := nettest.Ping(t, lan, netip.MustParseAddr(nettest.HostAddr4), 100*time.Millisecond); err == nil {
		t.Error("a deaf host answers")
	}
	got, err = c.Counters()
	if err != nil || got[plan.ElemKey{Set: "refused_from", Key: dev}].Packets == 0 || got[plan.ElemKey{Set: "refused_to", Key: dev}].Packets != 0 {
		t.Errorf("%v, %v", got, err)
	}
}

// TestLackingFeatureIsNamed: this kernel lacks nothing, and what one lacks is
// named.
func TestLackingFeatureIsNamed(t *testing.T) {
	t.Parallel()
	c := dial(t, nettest.NewHost(t))
	if got := c.lacking(features); len(got) > 0 {
		t.Errorf("lacking: %v", got)
	}
	data := xt.Unknown{1}
	made := feature{"made-up matches", withRule(nftables.ChainTypeFilter, []expr.Any{&expr.Match{Name: "madeup", Info: &data}})}
	if got := c.lacking([]feature{features[0], made, features[1]}); !slices.Equal(got, []string{made.name}) {
		t.Errorf("lacking: %v", got)
	}
	if flags, ok, err := c.tableFlags(probeTable); ok || err != nil {
		t.Errorf("the probe left a table: %d, %v", flags, err)
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err  error
		is   error
		want string
	}{
		{errors.Join(unix.EOPNOTSUPP, unix.ENOENT), berth.ErrUnsupported, "lacks"},
		{errors.Join(unix.ENOENT, unix.EOPNOTSUPP), berth.ErrDrifted, "somebody else"},
		{unix.EPERM, os.ErrPermission, "needs root (CAP_NET_ADMIN)"},
		{unix.ENOBUFS, berth.ErrDrifted, "lost"},
	} {
		err := explain("change the firewall", fmt.Errorf("conn.Receive: %w", tt.err))
		var errno unix.Errno
		if !errors.Is(err, tt.is) || !errors.As(err, &errno) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: %v", tt.err, err)
		}
	}
}

// TestLostConnectionIsDialledAgain closes the socket below.
func TestLostConnectionIsDialledAgain(t *testing.T) {
	t.Parallel()
	c := dial(t, nettest.NewHost(t))
	apply(t, c, plan.Transaction{Rebuild: true})
	c.giveUp()
	apply(t, c, plan.Transaction{Put: everything()})
	if got, err := c.Read(); err != nil || len(got) != len(everything()) {
		t.Errorf("%d, %v", len(got), err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func BenchmarkApplyOne(b *testing.B) {
	c := dial(b, nettest.NewHost(b))
	apply(b, c, plan.Transaction{Rebuild: true, Put: ports(1000)})
	e := []plan.Element{element("publish_any4", "tcp . 8080", "10.9.0.2 . 80")}
	for b.Loop() {
		apply(b, c, plan.Transaction{Put: e})
		apply(b, c, plan.Transaction{Drop: e})
	}
}

func BenchmarkTable(b *testing.B) {
	c := dial(b, nettest.NewHost(b))
	apply(b, c, plan.Transaction{Rebuild: true, Put: everything()})
	for b.Loop() {
		if tab, err := c.Table(); err != nil || !tab.Exact {
			b.Fatal(tab, err)
		}
	}
}

func BenchmarkGeneration(b *testing.B) {
	c := dial(b, nettest.NewHost(b))
	for b.Loop() {
		if _, err := c.Generation(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTenThousand(b *testing.B) {
	c := dial(b, nettest.NewHost(b))
	all := ports(10000)
	apply(b, c, plan.Transaction{Rebuild: true, Put: all})
	b.Run("read", func(b *testing.B) {
		for b.Loop() {
			if m, err := c.Read(); err != nil || len(m) != len(all) {
				b.Fatal(len(m), err)
			}
		}
	})
	b.Run("drop-put", func(b *testing.B) {
		for b.Loop() {
			apply(b, c, plan.Transaction{Drop: all})
			apply(b, c, plan.Transaction{Put: all})
		}
	})
}

// TestReadMixesNoTwoStates: while somebody commits, a read shows one state or
// says that it cannot.
func TestReadMixesNoTwoStates(t *testing.T) {
	t.Parallel()
	h := nettest.NewHost(t)
	writer, reader := dial(t, h), dial(t, h)
	state := func(port int) (all []plan.Element) {
		for i := range 300 {
			all = append(all, element("publish_any4", fmt.Sprintf("tcp . %d", i+1), fmt.Sprintf("10.9.0.2 . %d", port)))
		}
		return all
	}
	apply(t, writer, plan.Transaction{Rebuild: true, Put: state(1)})
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for from := 1; ; from = 3 - from {
			select {
			case <-stop:
				return
			default:
			}
			if err := writer.Apply(plan.Transaction{Drop: state(from), Put: state(3 - from)}, "abc"); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	whole := 0
	for range 30 {
		got, err := reader.Read()
		if errors.Is(err, berth.ErrDrifted) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		values := map[string]int{}
		for _, e := range got {
			values[e.Value]++
		}
		if len(got) != 300 || len(values) != 1 {
			t.Errorf("read %v", values)
		}
		whole++
	}
	close(stop)
	<-done
	t.Logf("%d of 30 reads were whole", whole)
}

package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"berth"

	"pgregory.net/rapid"
)

func prefixes(s string) (out []netip.Prefix) {
	for _, f := range strings.Fields(s) {
		out = append(out, netip.MustParsePrefix(f))
	}
	return out
}

func TestDefaultPoolsHold31NetworksInDockersOrder(t *testing.T) {
	var got, want []string
	for i := 17; i <= 31; i++ {
		want = append(want, fmt.Sprintf("172.%d.0.0/16", i))
	}
	for i := 0; i < 256; i += 16 {
		want = append(want, fmt.Sprintf("192.168.%d.0/20", i))
	}
	var taken []netip.Prefix
	for range want {
		p, err := NextSubnet(DefaultPools, taken)
		if err != nil {
			t.Fatal(err)
		}
		got, taken = append(got, p.String()), append(taken, p)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	_, err := NextSubnet(DefaultPools, taken)
	if !errors.Is(err, berth.ErrExhausted) || !strings.Contains(err.Error(), "all 7 address pools are full") {
		t.Errorf("32nd network: %v", err)
	}
}

func TestNextSubnet(t *testing.T) {
	for _, c := range []struct{ name, pools, taken, want string }{
		{"empty", "10.0.0.0/8,24", "", "10.0.0.0/24"},
		{"host bits of the base do not matter", "10.1.2.3/8,24", "", "10.0.0.0/24"},
		{"a wide route takes everything inside", "10.0.0.0/8,24", "10.0.0.0/9", "10.128.0.0/24"},
		{"a narrow route takes its slot", "10.0.0.0/8,24", "10.0.0.7/32 10.0.1.128/25", "10.0.2.0/24"},
		{"nested prefixes", "10.0.0.0/8,24", "10.0.0.0/16 10.0.0.0/24 10.0.3.0/24 10.0.255.0/24", "10.1.0.0/24"},
		{"the gap between", "10.0.0.0/8,24", "10.0.0.0/24 10.0.2.0/24", "10.0.1.0/24"},
		{"unsorted, with the other family", "10.0.0.0/8,24", "10.0.1.0/24 ::/0 10.0.0.0/24", "10.0.2.0/24"},
		{"the second pool", "10.0.0.0/24,24 10.9.0.0/24,25", "10.0.0.1/32 10.9.0.0/26", "10.9.0.128/25"},
		{"order of addresses, not of the list", "192.168.0.0/16,24 10.9.0.0/16,24", "", "10.9.0.0/24"},
		{"a pool inside an earlier one is dropped", "10.9.0.0/16,16 10.0.0.0/8,24", "10.0.0.0/16", "10.1.0.0/24"},
		{"the end of the address space", "255.255.0.0/16,17", "255.255.0.0/32", "255.255.128.0/17"},
		{"nothing left at the end of the address space", "255.255.0.0/16,17", "255.255.0.0/32 255.255.255.255/32", ""},
		{"v6 pools are not for v4", "fd00::/48,64", "", ""},
		{"the default route would take all", "10.0.0.0/8,24", "0.0.0.0/0", ""},
	} {
		var pools []Pool
		for _, f := range strings.Fields(c.pools) {
			base, size, _ := strings.Cut(f, ",")
			p := Pool{Base: netip.MustParsePrefix(base)}
			fmt.Sscan(size, &p.Size)
			pools = append(pools, p)
		}
		got, err := NextSubnet(pools, prefixes(c.taken))
		if c.want == "" {
			if !errors.Is(err, berth.ErrExhausted) {
				t.Errorf("%s: got %v, %v", c.name, got, err)
			}
			continue
		}
		if err != nil || got.String() != c.want {
			t.Errorf("%s: got %v, %v, want %s", c.name, got, err, c.want)
		}
	}
	for _, p := range []Pool{{}, {netip.MustParsePrefix("10.0.0.0/8"), 7}, {netip.MustParsePrefix("10.0.0.0/8"), 33}} {
		if _, err := NextSubnet([]Pool{p}, nil); !errors.Is(err, berth.ErrInvalid) {
			t.Errorf("pool %v: %v", p, err)
		}
	}
}

func TestSubnetOfSize(t *testing.T) {
	ula := append(slices.Clone(DefaultPools), ULAPool("h"))
	for _, c := range []struct {
		bits  int
		v6    bool
		taken string
		want  string
		err   error
	}{
		{24, false, "", "172.17.0.0/24", nil},
		{24, false, "172.17.0.0/24", "172.17.1.0/24", nil},
		{14, false, "", "172.20.0.0/14", nil},
		{32, false, "172.17.0.0/31", "172.17.0.2/32", nil},
		{12, false, "", "", berth.ErrInvalid},
		{0, false, "", "", berth.ErrInvalid},
		{33, false, "", "", berth.ErrInvalid},
		{16, false, "172.16.0.0/12 192.168.0.0/16", "", berth.ErrExhausted},
		{80, true, "", ULAPool("h").Base.Addr().String() + "/80", nil},
		{40, true, "", "", berth.ErrInvalid},
	} {
		got, err := SubnetOfSize(ula, c.bits, c.v6, prefixes(c.taken))
		if c.err != nil && !errors.Is(err, c.err) || c.err == nil && (err != nil || got.String() != c.want) {
			t.Errorf("/%d: got %v, %v, want %s, %v", c.bits, got, err, c.want, c.err)
		}
	}
	if _, err := SubnetOfSize(DefaultPools, 64, true, nil); !errors.Is(err, berth.ErrInvalid) {
		t.Errorf("no v6 pool: %v", err)
	}
}

// The expected prefix is the digits 7 to 16 of sha256("host"), as
// "printf host | sha256sum" prints them.
func TestULAIsAFunctionOfTheHost(t *testing.T) {
	first, err := ULA("host", nil)
	if err != nil || first.String() != "fd63:47b0:172c::/64" {
		t.Fatalf("got %v, %v", first, err)
	}
	second, err := ULA("host", []netip.Prefix{first})
	if err != nil || second.String() != "fd63:47b0:172c:1::/64" {
		t.Fatalf("got %v, %v", second, err)
	}
	if _, err := ULA("host", prefixes("fd00::/8")); !errors.Is(err, berth.ErrExhausted) {
		t.Errorf("all taken: %v", err)
	}
	if other, _ := ULA("other", nil); other == first {
		t.Errorf("two hosts share %v", other)
	}
}

func TestSearchIsFastAmongThousands(t *testing.T) {
	pools := []Pool{{netip.MustParsePrefix("10.0.0.0/8"), 30}}
	var taken []netip.Prefix
	a := netip.MustParseAddr("10.0.0.0")
	for range 5000 {
		taken = append(taken, netip.PrefixFrom(a, 30))
		a = a.Next().Next().Next().Next()
	}
	taken = append(taken, prefixes("10.1.0.0/16 10.2.0.0/15 10.4.0.0/14 10.8.0.0/13 10.16.0.0/12 10.32.0.0/11 10.64.0.0/10 10.128.0.0/9")...)
	taken = append(taken, netip.PrefixFrom(a, 16)) // 10.0.0.0/16, unmasked
	start := time.Now()
	if p, err := NextSubnet(pools, taken); err == nil {
		t.Errorf("found %v", p)
	}
	if d := time.Since(start); d > 100*time.Millisecond {
		t.Errorf("took %v", d)
	}
}

func BenchmarkNextSubnetAmong5000(b *testing.B) {
	pools := []Pool{{netip.MustParsePrefix("10.0.0.0/8"), 24}}
	var taken []netip.Prefix
	for range 5000 {
		p, err := NextSubnet(pools, taken)
		if err != nil {
			b.Fatal(err)
		}
		taken = append(taken, p)
	}
	for b.Loop() {
		NextSubnet(pools, taken)
	}
}

// genPrefix draws prefixes of a small part of the address space, so they meet.
func genPrefix(base netip.Prefix, longest int) *rapid.Generator[netip.Prefix] {
	return rapid.Custom(func(t *rapid.T) netip.Prefix {
		bits := rapid.IntRange(base.Bits(), longest).Draw(t, "bits")
		n := numOf(base.Addr())
		slots := uint64(1) << (longest - base.Bits())
		n.lo += rapid.Uint64Range(0, slots-1).Draw(t, "slot") << (base.Addr().BitLen() - longest)
		return netip.PrefixFrom(n.addr(base.Addr().Is4()), bits)
	})
}

// The naive search tries every slot against every prefix.
func naive(p Pool, taken []netip.Prefix) (netip.Prefix, bool) {
	first, last := span(p.Base)
	width := p.Base.Addr().BitLen() - p.Size
	for n := first; !last.less(n); n, _ = n.last(width).next() {
		slot := netip.PrefixFrom(n.addr(p.Base.Addr().Is4()), p.Size)
		if !slices.ContainsFunc(taken, slot.Overlaps) {
			return slot, true
		}
	}
	return netip.Prefix{}, false
}

func TestSearchFindsWhatTryingEverySlotFinds(t *testing.T) {
	bases := prefixes("10.0.0.0/24 10.0.0.128/25 fd00::/120 fd00::ffff:ffff:ffff:ff00/120")
	rapid.Check(t, func(t *rapid.T) {
		base := rapid.SampledFrom(bases).Draw(t, "base")
		longest := base.Addr().BitLen()
		pool := Pool{base, rapid.IntRange(base.Bits(), longest).Draw(t, "size")}
		taken := rapid.SliceOfN(genPrefix(base, longest), 0, 40).Draw(t, "taken")
		for i := range taken { // few very wide ones, else all is taken at once
			if taken[i].Bits() < base.Bits()+3 {
				taken[i] = netip.PrefixFrom(taken[i].Addr(), base.Bits()+3)
			}
		}
		got, ok := search([]Pool{pool}, taken)
		want, wantOK := naive(pool, taken)
		if got != want || ok != wantOK {
			t.Fatalf("got %v %v, want %v %v", got, ok, want, wantOK)
		}
	})
}

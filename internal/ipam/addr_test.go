package ipam

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"berth"

	"pgregory.net/rapid"
)

// subnet reads "PREFIX [gw=A] [range=P] [name=A]…".
func subnet(s string) (out berth.Subnet) {
	for i, f := range strings.Fields(s) {
		key, value, _ := strings.Cut(f, "=")
		switch {
		case i == 0:
			out.Prefix = netip.MustParsePrefix(f)
		case key == "gw":
			out.Gateway = netip.MustParseAddr(value)
		case key == "range":
			out.Range = netip.MustParsePrefix(value)
		default:
			if out.Aux == nil {
				out.Aux = map[string]netip.Addr{}
			}
			out.Aux[key] = netip.MustParseAddr(value)
		}
	}
	return out
}

func TestGateway(t *testing.T) {
	for _, c := range []struct{ subnet, want string }{
		{"10.9.0.0/24", "10.9.0.1"},
		{"10.9.0.0/24 range=10.9.0.128/25", "10.9.0.128"},
		{"10.9.0.0/24 range=10.9.0.0/28", "10.9.0.1"},
		{"10.9.0.0/24 dns=10.9.0.1", "10.9.0.2"},
		{"10.9.0.0/30", "10.9.0.1"},
		{"10.9.0.0/31", "10.9.0.0"},
		{"10.9.0.7/32", "10.9.0.7"},
		{"10.9.0.0/24 range=10.9.0.255/32", "invalid IP"},
		{"fd00::/64", "fd00::1"},
		{"fd00::/64 range=fd00::1:0/112", "fd00::1:0"},
		{"fd00::/126", "fd00::1"},
		{"fd00::/127", "fd00::"},
		{"fd00::7/128", "fd00::7"},
	} {
		if got := Gateway(subnet(c.subnet)); got.String() != c.want {
			t.Errorf("%s: got %v, want %s", c.subnet, got, c.want)
		}
	}
}

func TestNextAddr(t *testing.T) {
	for _, c := range []struct{ subnet, after, taken, want string }{
		{"10.9.0.0/24 gw=10.9.0.1", "", "", "10.9.0.2"},
		{"10.9.0.0/24 gw=10.9.0.1", "10.9.0.7", "", "10.9.0.8"},
		{"10.9.0.0/24 gw=10.9.0.1", "10.9.0.254", "", "10.9.0.2"},
		{"10.9.0.0/24 gw=10.9.0.1", "10.9.0.254", "10.9.0.2", "10.9.0.3"},
		{"10.9.0.0/24 gw=10.9.0.1 a=10.9.0.2", "", "", "10.9.0.3"},
		{"10.9.0.0/24 gw=10.9.0.1 range=10.9.0.128/30", "10.9.0.131", "", "10.9.0.128"},
		{"10.9.0.0/24 gw=10.9.0.1 range=10.9.0.128/30", "10.9.0.5", "", "10.9.0.128"},
		{"10.9.0.0/24 gw=10.9.0.1 range=10.9.0.252/30", "10.9.0.254", "", "10.9.0.252"},
		{"10.9.0.0/24 gw=10.9.0.1", "fd00::5", "", "10.9.0.2"},
		{"10.9.0.0/30 gw=10.9.0.1", "", "10.9.0.2", ""},
		{"10.9.0.0/31 gw=10.9.0.0", "", "", "10.9.0.1"},
		{"10.9.0.0/32 gw=10.9.0.0", "", "", ""},
		{"255.255.255.0/24", "255.255.255.254", "", "255.255.255.1"},
		{"fd00::/64 gw=fd00::1", "", "", "fd00::2"},
		{"fd00::/64 gw=fd00::1", "fd00::ffff:ffff:ffff:ffff", "", "fd00::2"},
		{"fd00::/126", "fd00::2", "", "fd00::3"},
		{"fd00::/127 gw=fd00::", "", "", "fd00::1"},
	} {
		s := subnet(c.subnet)
		after, _ := netip.ParseAddr(c.after)
		got, err := NextAddr(s, after, func(a netip.Addr) bool { return strings.Contains(" "+c.taken+" ", " "+a.String()+" ") })
		if c.want == "" {
			if !errors.Is(err, berth.ErrExhausted) || !strings.Contains(err.Error(), s.Prefix.String()) {
				t.Errorf("%s after %s: got %v, %v", c.subnet, c.after, got, err)
			}
		} else if err != nil || got.String() != c.want {
			t.Errorf("%s after %s: got %v, %v, want %s", c.subnet, c.after, got, err, c.want)
		}
	}
}

func TestCheckAddr(t *testing.T) {
	s := "10.9.0.0/24 gw=10.9.0.1 range=10.9.0.128/25 dns=10.9.0.2"
	for _, c := range []struct {
		subnet, addr string
		want         error
	}{
		{s, "10.9.0.3", nil}, // outside the range
		{s, "10.9.0.200", nil},
		{s, "10.9.1.3", berth.ErrInvalid},
		{s, "fd00::1", berth.ErrInvalid},
		{s, "::ffff:10.9.0.3", berth.ErrInvalid},
		{s, "10.9.0.0", berth.ErrInvalid},
		{s, "10.9.0.255", berth.ErrInvalid},
		{s, "10.9.0.1", berth.ErrConflict},
		{s, "10.9.0.2", berth.ErrConflict},
		{"10.9.0.0/31 gw=10.9.0.0", "10.9.0.1", nil},
		{"fd00::/64 gw=fd00::1", "fd00::", berth.ErrInvalid},
		{"fd00::/64 gw=fd00::1", "fd00::ffff:ffff:ffff:ffff", nil},
		{"fd00::/64 gw=fd00::1", "fd00::2%eth0", berth.ErrInvalid},
	} {
		if err := CheckAddr(subnet(c.subnet), netip.MustParseAddr(c.addr)); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s in %s: %v, want %v", c.addr, c.subnet, err, c.want)
		}
	}
}

func TestCheckSubnet(t *testing.T) {
	for _, c := range []struct{ subnet, want string }{
		{"10.9.0.0/24 gw=10.9.0.1 range=10.9.0.128/25 dns=10.9.0.2", ""},
		{"10.9.0.0/24", ""},
		{"10.9.0.0/31 gw=10.9.0.0", ""},
		{"8.8.8.0/24", ""},
		{"240.1.0.0/24", ""},
		{"fd00::/64 gw=fd00::1", ""},
		{"10.9.0.1/24", "10.9.0.0/24 is meant"},
		{"127.1.0.0/24", "is loopback"},
		{"0.0.0.0/0", "means this host"},
		{"224.1.0.0/24", "is multicast"},
		{"169.254.9.0/24", "is link-local"},
		{"255.255.255.0/24", "is broadcast"},
		{"::/0", "loopback"},
		{"::1/128", "loopback"},
		{"fe80::/64", "is link-local"},
		{"ff02::/64", "is multicast"},
		{"::ffff:10.9.0.0/112", "is IPv4 in IPv6"},
		{"10.9.0.0/24 gw=10.9.1.1", "gateway 10.9.1.1: it is not in 10.9.0.0/24"},
		{"10.9.0.0/24 gw=10.9.0.255", "broadcast"},
		{"10.9.0.0/24 gw=10.9.0.0", "the network's own"},
		{"fd00::/64 gw=fd00::", "anycast"},
		{"10.9.0.0/24 gw=fd00::1", "it is not in"},
		{"10.9.0.0/24 range=10.9.0.0/23", "bits beyond its length|it is not inside"},
		{"10.9.0.0/24 range=10.8.0.0/15", "it is not inside"},
		{"10.9.0.0/24 range=10.9.1.0/25", "it is not inside"},
		{"10.9.0.0/24 range=10.9.0.1/25", "10.9.0.0/25 is meant"},
		{"10.9.0.0/24 range=fd00::/64", "it is not inside"},
		{"10.9.0.0/24 range=10.9.0.0/32", "no address in it"},
		{"10.9.0.0/24 dns=10.9.1.1", "dns=10.9.1.1: it is not in"},
		{"10.9.0.0/24 gw=10.9.0.1 dns=10.9.0.1", "it is the gateway"},
		{"10.9.0.0/24 a=10.9.0.2 b=10.9.0.2", "b=10.9.0.2: a has it"},
	} {
		err := CheckSubnet(subnet(c.subnet))
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", c.subnet, err)
			}
			continue
		}
		found := false
		for _, w := range strings.Split(c.want, "|") {
			found = found || err != nil && strings.Contains(err.Error(), w)
		}
		if !found || !errors.Is(err, berth.ErrInvalid) {
			t.Errorf("%s: got %v, want %q", c.subnet, err, c.want)
		}
	}
	if err := CheckSubnet(berth.Subnet{}); !errors.Is(err, berth.ErrInvalid) {
		t.Errorf("the zero subnet: %v", err)
	}
}

func TestMAC(t *testing.T) {
	a, b := netip.MustParseAddr("10.9.0.2"), netip.MustParseAddr("fd00::2")
	seen := map[berth.MAC]bool{}
	for _, n := range []string{"n1", "n2"} {
		for _, x := range []netip.Addr{a, a.Next(), b, b.Next()} {
			m := MAC(n, x)
			if m[0]&1 != 0 || m[0]&2 == 0 {
				t.Errorf("%s is not unicast and local", m)
			}
			if m != MAC(n, x) || seen[m] {
				t.Errorf("%s %s: %s", n, x, m)
			}
			seen[m] = true
			if x.Is4() && [4]byte(m[2:]) != x.As4() {
				t.Errorf("%s has no %s in it", m, x)
			}
		}
	}
}

var genSubnet = rapid.Custom(func(t *rapid.T) berth.Subnet {
	v4 := rapid.Bool().Draw(t, "v4")
	base, width := netip.MustParseAddr("10.9.0.0"), 32
	if !v4 {
		base, width = netip.MustParseAddr("fd00::"), 128
	}
	s := berth.Subnet{Prefix: netip.PrefixFrom(base, width-rapid.IntRange(0, 6).Draw(t, "size"))}
	if rapid.Bool().Draw(t, "ranged") {
		s.Range = genPrefix(s.Prefix, width).Draw(t, "range").Masked()
	}
	if rapid.Bool().Draw(t, "gateway") {
		s.Gateway = genPrefix(s.Prefix, width).Draw(t, "gw").Addr()
	}
	s.Aux = map[string]netip.Addr{}
	for _, name := range []string{"a", "b"}[:rapid.IntRange(0, 2).Draw(t, "aux")] {
		s.Aux[name] = genPrefix(s.Prefix, width).Draw(t, name).Addr()
	}
	return s
})

// A subnet hands out each usable address once, in order of the wheel, and then
// says it is exhausted.
func TestNextAddrHandsOutEveryUsableAddressOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := genSubnet.Draw(t, "subnet")
		want := map[netip.Addr]bool{}
		for a := s.Prefix.Addr(); s.Prefix.Contains(a); a = a.Next() {
			if (!s.Range.IsValid() || s.Range.Contains(a)) && CheckAddr(s, a) == nil {
				want[a] = true
			}
		}
		last := genPrefix(s.Prefix, s.Prefix.Addr().BitLen()).Draw(t, "after").Addr()
		got := map[netip.Addr]bool{}
		wraps := 0
		for {
			a, err := NextAddr(s, last, func(a netip.Addr) bool { return got[a] })
			if err != nil {
				if !errors.Is(err, berth.ErrExhausted) {
					t.Fatal(err)
				}
				break
			}
			if got[a] || !want[a] {
				t.Fatalf("handed out %v", a)
			}
			if a.Less(last) {
				wraps++
			}
			got[a], last = true, a
		}
		if len(got) != len(want) {
			t.Fatalf("handed out %d addresses, %d are usable", len(got), len(want))
		}
		if wraps > 1 {
			t.Fatalf("went round %d times", wraps)
		}
	})
}

// An address that was given back is the last to be handed out again.
func TestNextAddrLetsAnAddressRest(t *testing.T) {
	s := subnet("10.9.0.0/24 gw=10.9.0.1")
	taken := map[netip.Addr]bool{}
	var last netip.Addr
	for i := range 1000 {
		a, err := NextAddr(s, last, func(a netip.Addr) bool { return taken[a] })
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 && i%253 != 0 && a != last.Next() {
			t.Fatalf("after %v came %v", last, a)
		}
		last = a
	}
}

func TestCheckRoom(t *testing.T) {
	for _, c := range []struct {
		prefix    string
		sandboxes int
		fits      bool
	}{
		{"10.7.0.0/32", 1, false},
		{"10.7.0.0/31", 1, true},
		{"10.7.0.0/31", 2, false},
		{"10.7.0.0/30", 1, true},
		{"10.7.0.0/30", 2, false},
		{"10.7.0.0/29", 2, true},
		{"fd00::/128", 1, false},
		{"fd00::/127", 1, true},
		{"fd00::/127", 2, false},
		{"fd00::/126", 2, true},
		{"fd00::/64", 2, true},
	} {
		s := berth.Subnet{Prefix: netip.MustParsePrefix(c.prefix)}
		s.Gateway = Gateway(s)
		if err := CheckRoom(s, c.sandboxes); (err == nil) != c.fits || err != nil && !errors.Is(err, berth.ErrInvalid) {
			t.Errorf("%s with %d sandboxes: %v", c.prefix, c.sandboxes, err)
		}
	}
}

package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth"
	"berth/internal/nettest"
	"berth/internal/plan"
)

// TestLoopbackLeadsToTwoNetworks: IPv6 replaces routes without a look at their
// link, and the routes that let ::1 out differ in nothing else.
func TestLoopbackLeadsToTwoNetworks(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "c1", "d2")
	w.host.BrNetfilter(t, false)
	a, b := bridgeNet("a", "", "fd00:9::/64"), bridgeNet("b", "", "fd00:8::/64")
	s := plan.Sum(plan.Base(false, true, plan.Uplinks{}), plan.Network(a, true), plan.Network(b, true),
		plan.Sandbox("c1", []plan.Attachment{attachment(a, "c1", 0, "fd00:9::2/64")}),
		plan.Sandbox("d2", []plan.Attachment{attachment(b, "d2", 0, "fd00:8::2/64")}))
	for port, to := range map[uint16]string{8001: "[fd00:9::2]:80", 8002: "[fd00:8::2]:80"} {
		s.Add(plan.Ports("who", berth.Port{
			PortKey: berth.PortKey{Protocol: berth.TCP, HostIP: netip.IPv6Unspecified(), HostPort: port}, To: netip.MustParseAddrPort(to),
		}))
	}
	w.become(t, s)
	nettest.Serve(t, w.there["c1"], "tcp", netip.MustParseAddrPort("[fd00:9::2]:80"), "c1")
	nettest.Serve(t, w.there["d2"], "tcp", netip.MustParseAddrPort("[fd00:8::2]:80"), "d2")
	for at, want := range map[string]string{"[::1]:8001": "c1", "[::1]:8002": "d2"} {
		answer, err := nettest.Dial(t, w.host, "tcp", netip.MustParseAddrPort(at), 5*time.Second)
		if err != nil || !strings.HasPrefix(answer, want) {
			t.Errorf("%s: %q, %v", at, answer, err)
		}
	}
}

// TestRouteChanges: a put changes what is behind its key, and nothing beside
// it.
func TestRouteChanges(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "c1")
	other := plan.LinkKey{Place: "c1", Name: "eth1"}
	s := []plan.Step{putBridge(), putPair(outKey, inKey, "berth:1"), putPair(plan.LinkKey{Name: "bt2"}, other, "berth:2")}
	for _, l := range []struct {
		key  plan.LinkKey
		addr string
	}{{inKey, "10.9.0.2/24"}, {inKey, "fd00:9::2/64"}, {other, "10.8.0.2/24"}, {other, "fd00:8::2/64"}} {
		s = append(s, plan.PutAddr{Key: plan.AddrKey{Link: l.key, Prefix: prefix(l.addr)}}, plan.UpLink{Key: l.key})
	}
	w.apply(t, s...)
	for _, dst := range []string{"10.1.0.0/16", "fd01::/16"} {
		gateways := map[string][]string{"eth0": {"10.9.0.1", "10.9.0.3"}, "eth1": {"10.8.0.1", "10.8.0.3"}}
		if strings.Contains(dst, "::") {
			gateways = map[string][]string{"eth0": {"fd00:9::1", "fd00:9::3"}, "eth1": {"fd00:8::1", "fd00:8::3"}}
		}
		key := func(dev string, table int) plan.RouteKey {
			return plan.RouteKey{Place: "c1", Table: table, Dst: prefix(dst), Dev: dev}
		}
		for i := range 2 {
			for table, dev := range map[int]string{254: "eth0", 9801: "eth1"} {
				want := plan.Route{Gateway: addr(gateways[dev][i])}
				w.apply(t, plan.PutRoute{Key: key(dev, table), Route: want})
				if got, ok := w.read(t).Routes[key(dev, table)]; !ok || got != want {
					t.Errorf("%s dev %s: got %+v, want %+v", dst, dev, got, want)
				}
			}
		}
		if strings.Contains(dst, "::") {
			// Two links of ours, one key but for the link: both stand, and one
			// changes without the other.
			for i := range 2 {
				for _, dev := range []string{"eth0", "eth1"} {
					w.apply(t, plan.PutRoute{Key: key(dev, 9850), Route: plan.Route{Gateway: addr(gateways[dev][i])}})
				}
			}
			have := w.read(t).Routes
			for _, dev := range []string{"eth0", "eth1"} {
				if got := have[key(dev, 9850)].Gateway; got != addr(gateways[dev][1]) {
					t.Errorf("%s dev %s by %s", dst, dev, got)
				}
				w.apply(t, plan.DropRoute{Key: key(dev, 9850), Route: plan.Route{Gateway: addr(gateways[dev][1])}})
			}
		}
		for table, dev := range map[int]string{254: "eth0", 9801: "eth1"} {
			w.apply(t, plan.DropRoute{Key: key(dev, table), Route: plan.Route{Gateway: addr(gateways[dev][1])}})
		}
	}
	if have := w.read(t).Routes; len(have) > 0 {
		t.Errorf("left: %v", have)
	}
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "c1")
	w.apply(t, putBridge(), putPair(outKey, inKey, "berth:1"))
	for _, s := range []string{"10.9.0.2/24", "10.9.0.4/31", "10.9.1.1/32", "fd00::2/64", "fd00::3/128"} {
		k := plan.AddrKey{Link: inKey, Prefix: prefix(s)}
		w.apply(t, plan.PutAddr{Key: k}, plan.UpLink{Key: inKey})
		if _, ok := w.read(t).Addrs[k]; !ok {
			t.Errorf("%s is not there", s)
		}
		w.apply(t, plan.DropAddr{Key: k})
	}
	if have := w.read(t).Addrs; len(have) > 0 {
		t.Errorf("left: %v", have)
	}
	// IPv6 that is off on a link is no lack of rights.
	w.apply(t, plan.SetSysctl{Key: plan.SysctlKey{Place: "c1", Path: "net/ipv6/conf/eth0/disable_ipv6"}, Value: "1"})
	err := w.Apply(t.Context(), []plan.Step{plan.PutAddr{Key: plan.AddrKey{Link: inKey, Prefix: prefix("fd00::2/64")}}})
	if !errors.Is(err, unix.EACCES) || strings.Contains(err.Error(), "root") {
		t.Errorf("address while IPv6 is off: %v", err)
	}
	for want, s := range map[string]netip.Prefix{"10.9.0.255": prefix("10.9.0.2/24"), "10.9.0.3": prefix("10.9.0.2/30"), "invalid IP": prefix("10.9.0.2/31")} {
		if b, _ := broadcast(s); b.String() != want {
			t.Errorf("broadcast of %s is %s, want %s", s, b, want)
		}
	}
}

// inside runs shell commands in a sandbox.
func (w *world) inside(t *testing.T, p plan.Place, script string) string {
	t.Helper()
	return w.host.Run(t, "nsenter", fmt.Sprintf("--net=/proc/%d/fd/%d", os.Getpid(), w.there[p].FD()), "sh", "-c", script)
}

// TestOwnRoutesComeBack: somebody else takes away routes that came with an
// address; the other link's of the same subnet stay.
func TestOwnRoutesComeBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "c1")
	out2, in2 := plan.LinkKey{Place: plan.Host, Name: "bt2"}, plan.LinkKey{Place: "c1", Name: "eth1"}
	w.apply(t, putBridge(), putPair(outKey, inKey, "berth:1"), putPair(out2, in2, "berth:2"))
	var want plan.State
	want.Addrs = map[plan.AddrKey]plan.Addr{}
	for link, addrs := range map[plan.LinkKey][]string{inKey: {"10.9.0.2/24", "fd00::2/64"}, in2: {"10.9.0.3/24", "fd00::3/64"}} {
		for _, a := range addrs {
			k := plan.AddrKey{Link: link, Prefix: prefix(a)}
			want.Addrs[k] = plan.Addr{}
			w.apply(t, plan.PutAddr{Key: k}, plan.UpLink{Key: link})
		}
	}
	routes := func() string {
		lines := strings.Split(w.inside(t, "c1", "ip -4 route show table all; ip -6 route"), "\n")
		slices.Sort(lines)
		return strings.Join(lines, "\n")
	}
	addrs := func() plan.State { return plan.State{Addrs: w.read(t).Addrs} }
	w.inside(t, "c1", "ip route add 10.8.0.0/16 via 10.9.0.1 dev eth0; ip -6 route add fd08::/16 via fd00::1 dev eth1")
	before := routes()
	for script, bare := range map[string]int{
		"ip route del 10.9.0.0/24 dev eth0; ip -6 route del fd00::/64 dev eth1":         2,
		"ip route del table local 10.9.0.2 dev eth0":                                    1,
		"ip route del table local 10.9.0.3 dev eth1; ip route del 10.9.0.0/24 dev eth1": 1,
		"ip -6 route del fd00::/64 dev eth0":                                            1,
		"ip -4 addr flush dev eth1":                                                     0,
	} {
		w.inside(t, "c1", script)
		n := 0
		for _, a := range addrs().Addrs {
			if a.Bare {
				n++
			}
		}
		if n != bare {
			t.Errorf("%s: %d addresses without all their routes, want %d", script, n, bare)
		}
		w.apply(t, plan.Steps(plan.Diff(addrs(), want))...)
		if d := plan.Diff(addrs(), want); !d.Empty() {
			t.Errorf("%s: mended, but for %+v", script, d)
		}
		if after := routes(); after != before {
			t.Errorf("%s: mended:\n%s\nbefore:\n%s", script, after, before)
		}
	}
	// Nothing of what was put by hand stays behind an address.
	w.apply(t, plan.Steps(plan.Diff(addrs(), plan.State{}))...)
	if left := w.inside(t, "c1", "ip -4 route show table all; ip -6 route show table all | grep -vE 'fe80|multicast|fd08' || true"); strings.TrimSpace(left) != "" {
		t.Errorf("left: %s", left)
	}
}

func TestMissingSysctls(t *testing.T) {
	t.Parallel()
	no6 := func(path string) bool { return !strings.HasPrefix(path, "net/ipv6") }
	noDev := func(path string) bool { return !strings.HasSuffix(path, "/dev") }
	all := func(string) bool { return true }
	for _, tt := range []struct {
		path, value string
		exists      func(string) bool
		want        error
	}{
		{"net/ipv6/conf/dev/disable_ipv6", "1", no6, nil},
		{"net/ipv6/conf/dev/disable_ipv6", "0", no6, berth.ErrUnsupported},
		{"net/ipv6/conf/all/forwarding", "0", no6, nil},
		{"net/ipv6/conf/all/forwarding", "1", no6, berth.ErrUnsupported},
		{"net/ipv6/conf/dev/accept_ra", "2", no6, nil},
		{"net/ipv6/conf/dev/accept_ra", "2", noDev, nil},
		{"net/ipv6/conf/dev/accept_ra", "1", noDev, nil},
		{"net/ipv6/conf/dev/accept_ra", "0", noDev, unix.ENOENT},
		{"net/ipv4/conf/dev/route_localnet", "0", noDev, nil},
		{"net/ipv4/conf/dev/route_localnet", "1", noDev, unix.ENOENT},
		{"net/ipv4/conf/dev/forwarding", "0", noDev, unix.ENOENT},
		{"net/ipv4/conf/dev/route_localnet", "0", all, unix.ENOENT},
	} {
		if err := missing(tt.path, tt.value, tt.exists); !errors.Is(err, tt.want) {
			t.Errorf("%s=%s: %v, want %v", tt.path, tt.value, err, tt.want)
		}
	}
}

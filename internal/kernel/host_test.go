package kernel

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"berth"
	"berth/internal/plan"
)

// listen opens sockets of the host that stay until the test ends.
func listen(t *testing.T, w *world, network, at string) netip.AddrPort {
	t.Helper()
	var got string
	err := w.host.Do(func() error {
		var lc net.ListenConfig
		if strings.HasPrefix(network, "tcp") {
			l, err := lc.Listen(context.Background(), network, at)
			if err == nil {
				t.Cleanup(func() { l.Close() })
				got = l.Addr().String()
			}
			return err
		}
		c, err := lc.ListenPacket(context.Background(), network, at)
		if err == nil {
			t.Cleanup(func() { c.Close() })
			got = c.LocalAddr().String()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return netip.MustParseAddrPort(got)
}

func TestListeners(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	want := map[string]bool{} // protocol, address and whether IPv6 only
	for _, l := range []struct {
		protocol    berth.Protocol
		network, at string
		v6only      bool
	}{
		{berth.TCP, "tcp4", "127.0.0.1:0", false},
		{berth.TCP, "tcp4", "0.0.0.0:0", false},
		{berth.TCP, "tcp6", "[::]:0", true},
		{berth.TCP, "tcp", "[::]:0", false},
		{berth.UDP, "udp4", "127.0.0.53:0", false},
		{berth.UDP, "udp6", "[::1]:0", true},
		{berth.UDP, "udp", "[::]:0", false},
	} {
		want[fmt.Sprintf("%s %s %v", l.protocol, listen(t, w, l.network, l.at), l.v6only)] = true
	}
	err := w.host.Do(func() error { // connected: takes nobody's port
		c, err := net.Dial("udp4", "127.0.0.1:9")
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	all, err := w.Listeners()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range all {
		s := fmt.Sprintf("%s %s %v", l.Protocol, l.Addr, l.V6Only)
		if !want[s] {
			t.Errorf("found %s", s)
		}
		delete(want, s)
		if l.UID != 0 || l.Inode == 0 {
			t.Errorf("%s: uid %d, inode %d", s, l.UID, l.Inode)
		}
	}
	for s := range want {
		t.Errorf("did not find %s", s)
	}
	if got, want := Owner(all[0].Inode), fmt.Sprintf("kernel.test (pid %d)", os.Getpid()); got != want {
		t.Errorf("owner %q, want %q", got, want)
	}
	if got := Owner(0); got != "" {
		t.Errorf("owner of nothing: %q", got)
	}
}

func TestEphemeralPorts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.apply(t, plan.SetSysctl{Key: plan.SysctlKey{Path: "net/ipv4/ip_local_port_range"}, Value: "40000\t40100"},
		plan.SetSysctl{Key: plan.SysctlKey{Path: "net/ipv4/ip_local_reserved_ports"}, Value: "40001,40010-40012"})
	low, high, reserved, err := w.EphemeralPorts()
	if err != nil || low != 40000 || high != 40100 || !slices.Equal(reserved, []PortRange{{40001, 40001}, {40010, 40012}}) {
		t.Errorf("%d-%d, %v, %v", low, high, reserved, err)
	}
}

func TestRoutesAndMTU(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if mtu, err := w.DefaultMTU(); err != nil || mtu != 1500 {
		t.Errorf("MTU without a default route: %d, %v", mtu, err)
	}
	w.host.LAN(t)
	w.host.Run(t, "ip", "link", "set", "uplink0", "mtu", "1380")
	w.host.Run(t, "ip", "route", "add", "10.1.0.0/16", "via", "192.0.2.2", "table", "77")
	w.host.Run(t, "ip", "route", "add", "blackhole", "10.2.0.0/16")
	if mtu, err := w.DefaultMTU(); err != nil || mtu != 1380 {
		t.Errorf("MTU: %d, %v", mtu, err)
	}
	w.host.Run(t, "ip", "route", "del", "default")
	if mtu, err := w.DefaultMTU(); err != nil || mtu != 1380 {
		t.Errorf("MTU with IPv6's default route alone: %d, %v", mtu, err)
	}
	all, err := w.Routes()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"10.1.0.0/16", "10.2.0.0/16", "192.0.2.0/24", "127.0.0.0/8", "2001:db8::/64"} {
		if !slices.Contains(all, prefix(s)) {
			t.Errorf("no %s in %v", s, all)
		}
	}
	for _, p := range all {
		if p.Bits() == 0 {
			t.Errorf("a default route: %s", p)
		}
	}
}

func TestRoutesOfAddressesWithoutRoutes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.host.Run(t, "ip", "link", "add", "down0", "type", "bridge")
	w.host.Run(t, "ip", "addr", "add", "10.3.0.1/24", "dev", "down0", "noprefixroute")
	all, err := w.Routes()
	if err != nil || !slices.Contains(all, prefix("10.3.0.0/24")) {
		t.Errorf("no 10.3.0.0/24 in %v, %v", all, err)
	}
}

func TestLinks(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "c1")
	w.host.LAN(t)
	w.apply(t, putBridge(), putPair(outKey, inKey, "berth:1"))
	all, err := w.Links(plan.Host)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]LinkInfo{}
	for _, l := range all {
		seen[l.Name] = l
	}
	if l := seen["uplink0"]; !slices.Contains(l.Addrs, prefix("192.0.2.1/24")) || !slices.Contains(l.Addrs, prefix("2001:db8::1/64")) || !l.Up || l.Kind != "veth" || l.Alias != "" {
		t.Errorf("uplink0: %+v", l)
	}
	if l := seen["bt1"]; l.Master != "bt-a" || l.MTU != 1500 || l.Alias != "berth:1" {
		t.Errorf("bt1: %+v", l)
	}
	if l := seen["bt-a"]; l.Kind != "bridge" || l.MAC != (berth.MAC{2, 1}) {
		t.Errorf("bt-a: %+v", l)
	}
	if _, err := w.Links("gone"); err == nil {
		t.Error("links of a namespace that is gone")
	}
}

func TestProbe(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	features, err := w.Probe()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range features {
		if f.Name == "" || f.Costs == "" {
			t.Errorf("%+v", f)
		}
		if f.Name == "nf_tables" && !f.Have {
			t.Error("no nf_tables, and the table can be made")
		}
	}
	for s, want := range map[string]bool{"6.18.4-x": true, "6.18": true, "7.0.1": true, "6.17.9": false, "5.19": false} {
		if atLeast(s, 6, 18) != want {
			t.Errorf("atLeast(%q) = %v", s, !want)
		}
	}
}

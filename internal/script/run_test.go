package script

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"berth/internal/nettest"
	"berth/internal/plan"
)

// TestScriptRuns types what we print and looks whether traffic flows.
func TestScriptRuns(t *testing.T) {
	ruleset, err := os.ReadFile("testdata/ruleset.nft")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		how  string
		name func(h *nettest.Host) string
	}{
		{"by name", func(*nettest.Host) string { return "web" }},
		{"by path", func(*nettest.Host) string { return "/run/netns/web" }},
	} {
		t.Run(tt.how, func(t *testing.T) {
			t.Parallel()
			h := nettest.NewHost(t)
			lan := h.LAN(t)
			web := h.Netns(t, "web")
			s := Script{Ruleset: string(ruleset), Store: "42", Name: func(plan.Place) string { return tt.name(h) }}

			sh(t, h, s.Render(plan.Steps(plan.Diff(plan.State{}, situation()))))
			look(t, h)
			for _, a := range []string{"0.0.0.0:80", "[::]:80"} {
				nettest.Serve(t, web, "tcp", netip.MustParseAddrPort(a), "web")
			}
			flows(t, lan, web)

			// Once more: what is there stays.
			sh(t, h, s.Render(plan.Steps(plan.Diff(plan.State{}, situation()))))
			look(t, h)
			flows(t, lan, web)

			remove := s.Render(append(plan.Steps(plan.Diff(situation(), plan.State{})), plan.DropNetns{Name: "web"}))
			sh(t, h, remove)
			left, err := h.Leftovers()
			if err != nil || len(left) > 0 {
				t.Errorf("left %q, %v", left, err)
			}
			if got := h.Run(t, "sysctl", "-n", "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"); got != "0\n0\n" {
				t.Errorf("forwarding = %q", got)
			}
		})
	}
}

func sh(t *testing.T, h *nettest.Host, text string) {
	t.Helper()
	cmd := h.Command("bash", "-e")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("script: %v\n%s\n%s", err, out, text)
	}
}

// look compares what the tools show with what was planned.
func look(t *testing.T, h *nettest.Host) {
	t.Helper()
	for _, tt := range []struct{ command, want string }{
		{"ip link show dev bt-front", "alias berth:" + strings.Repeat("a", 64)},
		{"ip -d link show dev bt22222222", "isolated on"},
		{"ip -d link show dev bt22222222", "hairpin on"},
		{"ip -d link show dev bt11111111", "addrgenmode none"},
		{"ip -n web link show dev eth0", "link/ether 02:00:0a:09:00:02"},
		{"ip -n web link show dev eth1", "mtu 1400"},
		{"ip -n web link show dev eth1", "state UP"},
		{"ip -n web addr show dev eth0", "inet6 fd00:9::2/64 scope global nodad"},
		{"ip -n web route", "default via 10.9.0.1 dev eth0 proto 98"},
		{"ip -n web -6 route", "default via fd00:9::1 dev eth0 proto 98"},
		{"ip -n web route show table 9801", "10.8.0.0/24 dev eth1 proto 98 scope link"},
		{"ip -n web rule", "9801:	from 10.8.0.2 lookup 9801 proto 98"},
		{"ip netns exec web sysctl net.ipv4.conf.eth1.forwarding", "= 0"},
		{"ip netns exec web sysctl net.ipv6.conf.eth1.disable_ipv6", "= 1"},
		{"tc qdisc show dev bt22222222 root", "rate 100Mbit burst 123Kb lat 50ms"},
		{"tc filter show dev bt22222222 ingress", "mirred (Egress Redirect to device bt22222222-out)"},
		{"tc qdisc show dev bt22222222-out", "rate 50Mbit burst 256Kb lat 50ms"},
		{"sysctl net.ipv4.conf.bt-front.route_localnet", "= 1"},
		{"ip -6 route show table local", "local ::1 dev bt-front proto 98 metric 9800"},
		{"nft list chain inet berth refuse", `"store 42"`},
		{"nft list map inet berth publish_any4", `tcp . 8080 comment "sandbox web" : 10.9.0.2 . 80`},
		{"nft list set inet berth hairpin6", `fd00:9::/64 . "bt-front" comment "network front"`},
	} {
		args := strings.Fields(tt.command)
		if got := h.Run(t, args[0], args[1:]...); !strings.Contains(got, tt.want) {
			t.Errorf("%s shows\n%swant %s", tt.command, got, tt.want)
		}
	}
}

func flows(t *testing.T, lan *nettest.Host, web nettest.Place) {
	t.Helper()
	for addr, want := range map[string]string{
		nettest.HostAddr4: "web " + nettest.LANAddr4, nettest.HostAddr6: "web " + nettest.LANAddr6,
	} {
		got, err := nettest.Dial(t, lan, "tcp", netip.AddrPortFrom(netip.MustParseAddr(addr), 8080), 5*time.Second)
		if got != want {
			t.Errorf("dial %s = %q, %v, want %q", addr, got, err, want)
		}
	}
	err := errors.Join(
		nettest.Ping(t, web, netip.MustParseAddr(nettest.LANAddr4), 5*time.Second),
		nettest.Ping(t, web, netip.MustParseAddr("10.8.0.1"), 5*time.Second),
	)
	if err != nil {
		t.Error(err)
	}
}

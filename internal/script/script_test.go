package script

import (
	"flag"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth"
	"berth/internal/plan"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// name addresses the sandboxes of the tests: p's namespace has only a path.
func name(p plan.Place) string {
	if p == "p" {
		return "/proc/7/ns/net"
	}
	return string(p)
}

func TestRender(t *testing.T) {
	host, c1, p := plan.LinkKey{Place: plan.Host, Name: "bt01"}, plan.LinkKey{Place: "c1", Name: "eth0"}, plan.LinkKey{Place: "p", Name: "eth0"}
	mac := berth.MAC{2, 0, 0, 0, 0, 5}
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	tests := []struct {
		name string
		step plan.Step
		want string // without the comment
	}{
		{"bridge", plan.PutLink{Key: plan.LinkKey{Name: "bt-a"}, Link: plan.Link{Kind: plan.BridgeLink, Alias: "berth:n", MTU: 1400, MAC: mac, Up: true}}, `
ip link add bt-a type bridge || true
ip link set dev bt-a mtu 1400 address 02:00:00:00:00:05 alias berth:n promisc off
ip link set dev bt-a up`},
		{"veth to a name", plan.PutLink{
			Key:    host,
			Link:   plan.Link{Kind: plan.VethLink, Alias: "berth:e", MTU: 1500, Up: true, Peer: c1, Master: "bt-a", Hairpin: true, NoLinkLocal: true},
			Inside: plan.Link{Kind: plan.VethLink, Alias: "berth:e", MTU: 1500, MAC: mac, Up: true, Peer: host},
		}, `
ip link add bt01 type veth peer name eth0 netns c1 || true
ip -n c1 link set dev eth0 mtu 1500 address 02:00:00:00:00:05 alias berth:e
ip link set dev bt01 mtu 1500 alias berth:e master bt-a addrgenmode none
bridge link set dev bt01 hairpin on isolated off
ip link set dev bt01 up`},
		{"veth to a path", plan.PutLink{
			Key:    host,
			Link:   plan.Link{Kind: plan.VethLink, Alias: "berth:e", Up: true, Peer: p},
			Inside: plan.Link{Kind: plan.VethLink, Alias: "berth:e", Peer: host},
		}, `
ip link add bt01 type veth peer name eth0 netns /proc/7/ns/net || true
nsenter --net=/proc/7/ns/net ip link set dev eth0 alias berth:e
ip link set dev bt01 alias berth:e
ip link set dev bt01 up`},
		{"veth made from its inner end", plan.PutLink{
			Key:    c1,
			Link:   plan.Link{Kind: plan.VethLink, Alias: "berth:e", Up: true, Peer: host},
			Inside: plan.Link{Kind: plan.VethLink, Alias: "berth:e", Peer: c1},
		}, `
ip link add bt01 type veth peer name eth0 netns c1 || true
ip -n c1 link set dev eth0 alias berth:e
ip link set dev bt01 alias berth:e
ip -n c1 link set dev eth0 up`},
		{"one end of a veth", plan.PutLink{Key: c1, Link: plan.Link{Kind: plan.VethLink, Alias: "berth:e", Peer: host}}, `
ip -n c1 link set dev eth0 nomaster
ip -n c1 link set dev eth0 alias berth:e`},
		{"up", plan.UpLink{Key: p}, "nsenter --net=/proc/7/ns/net ip link set dev eth0 up"},
		{"drop links", plan.DropLinks{Place: "c1", Names: []string{"eth0", "a'b"}}, `
ip -n c1 link del dev eth0 || true
ip -n c1 link del dev 'a'\''b' || true`},
		{"put address", plan.PutAddr{Key: plan.AddrKey{Link: c1, Prefix: prefix("fd00::5/64")}}, "ip -n c1 addr replace fd00::5/64 dev eth0 nodad"},
		{"routes of an address", plan.PutAddr{Key: plan.AddrKey{Link: c1, Prefix: prefix("10.9.0.2/24")}, Bare: true}, "ip -n c1 route append local 10.9.0.2 dev eth0 table local proto kernel scope host src 10.9.0.2 || true\nip -n c1 route append 10.9.0.0/24 dev eth0 proto kernel scope link src 10.9.0.2 || true"},
		{"routes of an IPv6 address", plan.PutAddr{Key: plan.AddrKey{Link: c1, Prefix: prefix("fd00::5/64")}, Bare: true}, "ip -n c1 -6 route append fd00::/64 dev eth0 proto kernel metric 256 || true"},
		{"drop address", plan.DropAddr{Key: plan.AddrKey{Link: host, Prefix: prefix("10.9.0.1/24")}}, "ip addr del 10.9.0.1/24 dev bt01 || true"},
		{"default route", plan.PutRoute{
			Key:   plan.RouteKey{Place: "c1", Table: plan.TableMain, Dst: prefix("::/0"), Dev: "eth0"},
			Route: plan.Route{Gateway: addr("fd00::1"), Src: addr("fd00::5")},
		}, "ip -n c1 -6 route replace default via fd00::1 dev eth0 table main proto 98 src fd00::5"},
		{"local route", plan.DropRoute{
			Key:   plan.RouteKey{Table: plan.TableLocal, Dst: prefix("::1/128"), Dev: "bt-a", Metric: 9800},
			Route: plan.Route{Local: true},
		}, "ip -6 route del local ::1/128 dev bt-a table local proto 98 metric 9800 || true"},
		{"put rule", plan.PutRule{Key: plan.RuleKey{Place: "c1", From: prefix("10.9.0.5/32"), Table: 9801, Priority: 9801}},
			"ip -n c1 rule add from 10.9.0.5/32 lookup 9801 priority 9801 protocol 98 || true"},
		{"drop rule", plan.DropRule{Key: plan.RuleKey{Place: "p", From: prefix("fd00::5/128"), Table: 9801, Priority: 9801}},
			"nsenter --net=/proc/7/ns/net ip -6 rule del from fd00::5/128 lookup 9801 priority 9801 protocol 98 || true"},
		{"sysctl of the host", plan.SetSysctl{Key: plan.SysctlKey{Path: "net/ipv4/conf/eth0.1/forwarding"}, Value: "0"},
			"sysctl -qw net/ipv4/conf/eth0.1/forwarding=0"},
		{"sysctl of a name", plan.SetSysctl{Key: plan.SysctlKey{Place: "c1", Path: "net/ipv4/ip_forward"}, Value: "1"},
			"ip netns exec c1 sysctl -qw net/ipv4/ip_forward=1"},
		{"sysctl of a path", plan.SetSysctl{Key: plan.SysctlKey{Place: "p", Path: "net/ipv4/ip_forward"}, Value: "1"},
			"nsenter --net=/proc/7/ns/net sysctl -qw net/ipv4/ip_forward=1"},
		{"make a namespace", plan.PutNetns{Name: "c1"}, "ip netns add c1 || true"},
		{"drop a namespace", plan.DropNetns{Name: "c1"}, "ip netns del c1 || true"},
		{"conntrack", plan.FlushConntrack{
			Addrs: []netip.Addr{addr("10.9.0.5"), addr("fd00::5")},
			Ports: []berth.PortKey{
				{Protocol: berth.UDP, HostIP: addr("0.0.0.0"), HostPort: 53},
				{Protocol: berth.TCP, HostIP: addr("0.0.0.0"), HostPort: 80},
			},
		}, `
conntrack -D -f ipv4 -s 10.9.0.5 2>/dev/null || true
conntrack -D -f ipv4 -r 10.9.0.5 2>/dev/null || true
conntrack -D -f ipv6 -s fd00::5 2>/dev/null || true
conntrack -D -f ipv6 -r fd00::5 2>/dev/null || true
conntrack -D -f ipv4 -p udp --dport 53 --dst-nat 2>/dev/null || true`},
		{"conntrack cut", plan.FlushConntrack{
			Ports: []berth.PortKey{{Protocol: berth.TCP, HostIP: addr("fd00::1"), HostPort: 80}}, Cut: true,
		}, "conntrack -D -f ipv6 -p tcp --dport 80 --dst-nat -d fd00::1 2>/dev/null || true"},
		{"elements", plan.Transaction{
			Drop: []plan.Element{{ElemKey: plan.ElemKey{Set: "publish_any4", Key: "tcp . 80"}, Elem: plan.Elem{Value: "10.9.0.5 . 80"}}},
			Put: []plan.Element{
				{ElemKey: plan.ElemKey{Set: "within", Key: "tcp . tcp"}, Elem: plan.Elem{Comment: `network "a"`}},
				{ElemKey: plan.ElemKey{Set: "publish_any4", Key: "tcp . 80"}, Elem: plan.Elem{Value: "10.9.0.6 . 80", Comment: "sandbox web"}},
				{ElemKey: plan.ElemKey{Set: "publish_any4", Key: "udp . 53"}, Elem: plan.Elem{Value: "10.9.0.6 . 53", Comment: strings.Repeat("é", 100)}},
			},
		}, `
nft -f - <<'EOF'
delete element inet berth publish_any4 { tcp . 80 }
add element inet berth publish_any4 {
	tcp . 80 comment "sandbox web" : 10.9.0.6 . 80,
	udp . 53 comment "` + strings.Repeat("é", 63) + `" : 10.9.0.6 . 53
}
add element inet berth within { "tcp" . "tcp" comment "network a" }
EOF`},
		{"rebuild", plan.Transaction{Rebuild: true}, `
nft -f - <<'EOF'
table inet berth
delete table inet berth
table inet berth { comment "store 42"; }
EOF`},
		{"remove", plan.Transaction{Remove: true}, `
nft -f - <<'EOF'
table inet berth
delete table inet berth
EOF`},
	}
	s := Script{Ruleset: "table inet berth { comment \"store ID\"; }\n", Store: "42", Name: name}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			why, got, _ := strings.Cut(s.Render([]plan.Step{tt.step}), "\n")
			if !strings.HasPrefix(why, "# ") {
				t.Errorf("no comment: %q", why)
			}
			if diff := cmp.Diff(strings.TrimPrefix(tt.want, "\n")+"\n", got); diff != "" {
				t.Errorf("script (-want +got):\n%s", diff)
			}
		})
	}
}

// situation is a host with a dual-stack network, a second one, a sandbox on
// both and a published port.
func situation() plan.State {
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	front := berth.Network{
		ID: strings.Repeat("a", 64), Name: "front", Driver: berth.Bridge, HostEnd: true, Owned: true, Masquerade: true,
		Bridge: "bt-front", MTU: 1500,
		Subnets: []berth.Subnet{
			{Prefix: prefix("10.9.0.0/24"), Gateway: addr("10.9.0.1")}, {Prefix: prefix("fd00:9::/64"), Gateway: addr("fd00:9::1")},
		},
	}
	back := berth.Network{
		ID: strings.Repeat("b", 64), Name: "back", Driver: berth.Bridge, HostEnd: true, Owned: true, Internal: true, Isolated: true,
		Bridge: "bt-back", MTU: 1400,
		Subnets: []berth.Subnet{{Prefix: prefix("10.8.0.0/24"), Gateway: addr("10.8.0.1")}},
	}
	web := plan.Attachment{Network: front, Endpoint: berth.Endpoint{
		ID: strings.Repeat("1", 64), Sandbox: "web", Interface: "eth0", MAC: berth.MAC{2, 0, 10, 9, 0, 2},
		Addrs: []netip.Prefix{prefix("10.9.0.2/24"), prefix("fd00:9::2/64")},
	}}
	db := plan.Attachment{Network: back, Endpoint: berth.Endpoint{
		ID: strings.Repeat("2", 64), Sandbox: "web", Interface: "eth1", MAC: berth.MAC{2, 0, 10, 8, 0, 2}, Slot: 1,
		Addrs: []netip.Prefix{prefix("10.8.0.2/24")}, Rates: berth.Rates{In: berth.Rate{Bits: 100e6}, Out: berth.Rate{Bits: 50e6, Burst: 2 << 20}},
	}}
	port := func(ip, to string) berth.Port {
		return berth.Port{
			PortKey: berth.PortKey{Protocol: berth.TCP, HostIP: addr(ip), HostPort: 8080},
			Sandbox: "web", To: netip.MustParseAddrPort(to),
		}
	}
	return plan.Sum(
		plan.Base(true, true, plan.Uplinks{V4: []string{"uplink0"}, V6: []string{"uplink0"}}),
		plan.Network(front, true), plan.Network(back, false),
		plan.Sandbox("web", []plan.Attachment{web, db}),
		plan.Ports("web", port("0.0.0.0", "10.9.0.2:80"), port("::", "[fd00:9::2]:80")),
	)
}

func TestGolden(t *testing.T) {
	s := Script{Ruleset: "# ruleset\n", Name: name}
	for file, d := range map[string]plan.Delta{
		"testdata/make.sh":   plan.Diff(plan.State{}, situation()),
		"testdata/remove.sh": plan.Diff(situation(), plan.State{}),
	} {
		got := s.Render(plan.Steps(d))
		if *update {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", file, diff)
		}
	}
	if got := s.Render(nil); got != "" {
		t.Errorf("no steps give %q", got)
	}
}

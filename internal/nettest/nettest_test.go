package nettest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"where": Inside(where)})
}

// where tells where a program of a script runs.
func where() {
	links, err := net.Interfaces()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for _, l := range links {
		fmt.Println(l.Name)
	}
	wd, _ := os.Getwd()
	fmt.Println(filepath.Base(wd), os.Args[1:], os.Getenv(hostEnv))
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata", Setup: Script, Cmds: Commands})
}

func TestHostIsApart(t *testing.T) {
	t.Parallel()
	h := NewHost(t)
	if got := h.Run(t, "ls", "/sys/class/net"); strings.TrimSpace(got) != "lo" {
		t.Errorf("links in sysfs = %q, want lo only", got)
	}
	if got := h.Run(t, "ip", "-br", "link", "show", "up"); !strings.Contains(got, "lo") {
		t.Errorf("lo is not up: %q", got)
	}
	if got := h.Run(t, "ls", "-A", "/run", "/var/lib/berth"); got != "/run:\n\n/var/lib/berth:\n" {
		t.Errorf("own directories = %q, want empty ones", got)
	}
	h.Run(t, "touch", "/run/mine", "/var/lib/berth/mine", "/var/lib/mine")
	for _, f := range []string{"/run/mine", "/var/lib/berth/mine", "/var/lib/mine"} {
		if _, err := os.Stat(f); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is seen outside: %v", f, err)
		}
		if _, err := os.Stat(h.Path(f)); err != nil {
			t.Error(err)
		}
	}
	if got := h.Run(t, "cat", "/proc/sys/net/ipv4/ip_forward"); got != "0\n" {
		t.Errorf("ip_forward = %q", got)
	}
	if _, err := os.Stat(h.Path("/sys/fs/cgroup/cgroup.controllers")); err != nil {
		if _, err := os.Stat(h.Path("/sys/fs/cgroup/memory")); err != nil {
			t.Errorf("control groups are hidden: %v", err)
		}
	}
	wd, _ := os.Getwd()
	if got := h.Run(t, "pwd"); strings.TrimSpace(got) != wd {
		t.Errorf("pwd = %q, want %q", got, wd)
	}
}

// Also those that went on into namespaces of their own, as with ip-netns(8), and
// those of containers, which have a /run of their own.
func TestHostEndsWithItsProcesses(t *testing.T) {
	group := "/sys/fs/cgroup/pids/berth"
	if _, err := os.Stat("/sys/fs/cgroup/pids"); err != nil {
		group = "/sys/fs/cgroup/berth"
	}
	group = fmt.Sprintf("%s/nettest-%d", group, os.Getpid())
	t.Cleanup(func() {
		if err := os.Remove(group); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the cgroup stayed: %v", err)
		}
		os.Remove(filepath.Dir(group)) // others may be in it
	})
	contain := fmt.Sprintf(`set -e; mkdir -p %[1]s /run/berth/containers/%[2]s; echo $$ >%[1]s/cgroup.procs
		exec unshare --mount sh -ec 'mount -t tmpfs none /run; exec cat'`, group, filepath.Base(group))
	for name, in := range map[string][]string{
		"in the host":          {"cat"},
		"in a namespace of it": {"ip", "netns", "exec", "ns1", "cat"},
		"in a container of it": {"sh", "-c", contain},
	} {
		t.Run(name, func(t *testing.T) { endsWithHost(t, in...) })
	}
}

func endsWithHost(t *testing.T, command ...string) {
	h, err := start()
	if err != nil {
		t.Fatal(err)
	}
	h.Run(t, "ip", "netns", "add", "ns1")
	cmd := h.Command(command[0], command[1:]...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// An echo says that nsenter is through.
	fmt.Fprint(in, "x")
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	pid := h.Pid()
	if left := h.stop(); len(left) != 1 || left[0] != "cat" {
		t.Errorf("ended %q, want one cat", left)
	}
	in.Close() // else what went on would go on for ever
	if err := cmd.Wait(); err == nil {
		t.Error("the command went on")
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
		t.Error("the holder went on")
	}
}

func TestTraffic(t *testing.T) {
	t.Parallel()
	h := NewHost(t)
	lan := h.LAN(t)
	for _, proto := range []string{"tcp", "udp", "sctp"} {
		for _, ip := range []struct{ lan, host string }{{LANAddr4, HostAddr4}, {LANAddr6, HostAddr6}} {
			addr := netip.AddrPortFrom(netip.MustParseAddr(ip.lan), 80)
			Serve(t, lan, proto, addr, "lan says")
			got, err := Dial(t, h, proto, addr, 5*time.Second)
			if err != nil || got != "lan says "+ip.host {
				t.Errorf("dial %s %s = %q, %v", proto, addr, got, err)
			}
			closed := netip.AddrPortFrom(addr.Addr(), 81)
			if got, err := Dial(t, h, proto, closed, 100*time.Millisecond); err == nil {
				t.Errorf("dial %s %s = %q, want an error", proto, closed, got)
			}
		}
	}
	for _, ip := range []string{LANAddr4, LANAddr6, "127.0.0.1", "::1"} {
		if err := Ping(t, h, netip.MustParseAddr(ip), 5*time.Second); err != nil {
			t.Error(err)
		}
	}
	for _, ip := range []string{"192.0.2.9", "2001:db8::9"} {
		if err := Ping(t, h, netip.MustParseAddr(ip), 100*time.Millisecond); err == nil {
			t.Errorf("ping %s found somebody", ip)
		}
	}
}

// TestSCTPThroughNAT shows that conntrack takes our packets for SCTP.
func TestSCTPThroughNAT(t *testing.T) {
	t.Parallel()
	h := NewHost(t)
	lan := h.LAN(t)
	h.Run(t, "nft", `table inet t {
		chain c { type nat hook prerouting priority dstnat; sctp dport 9 redirect to :5000; }
		chain f { type filter hook input priority 0; ct state invalid drop; }
	}`)
	addr := netip.MustParseAddrPort(HostAddr4 + ":5000")
	Serve(t, h, "sctp", addr, "host")
	got, err := Dial(t, lan, "sctp", netip.AddrPortFrom(addr.Addr(), 9), 5*time.Second)
	if err != nil || got != "host "+LANAddr4 {
		t.Errorf("dial = %q, %v", got, err)
	}
}

func TestNetns(t *testing.T) {
	t.Parallel()
	h := NewHost(t)
	c1 := h.Netns(t, "c1")
	h.In(t, "c1", "ip", "link", "set", "lo", "up")
	Serve(t, c1, "tcp", netip.MustParseAddrPort("127.0.0.1:7"), "c1")
	if got, err := Dial(t, h.Open(t, "c1"), "tcp", netip.MustParseAddrPort("127.0.0.1:7"), time.Second); got != "c1 127.0.0.1" {
		t.Errorf("dial in c1 = %q, %v", got, err)
	}
	if got, err := Dial(t, h, "tcp", netip.MustParseAddrPort("127.0.0.1:7"), time.Second); err == nil {
		t.Errorf("dial in host = %q, want refused", got)
	}
	h.BrNetfilter(t, true)
	if got := h.Run(t, "cat", "/proc/sys/net/bridge/bridge-nf-call-ip6tables"); got != "1\n" {
		t.Errorf("bridge-nf-call-ip6tables = %q", got)
	}
	h.BrNetfilter(t, false)
	if got := h.Run(t, "cat", "/proc/sys/net/bridge/bridge-nf-call-iptables"); got != "0\n" {
		t.Errorf("bridge-nf-call-iptables = %q", got)
	}
}

func TestLeftovers(t *testing.T) {
	t.Parallel()
	h := NewHost(t)
	h.LAN(t)
	if left, err := h.Leftovers(); err != nil || len(left) != 0 {
		t.Fatalf("a fresh host has %q, %v", left, err)
	}
	h.Netns(t, "c1")
	h.Run(t, "nft", "add table inet berth")
	h.Run(t, "ip", "link", "add", "bt-a", "type", "bridge")
	h.Run(t, "ip", "route", "add", "198.51.100.0/24", "dev", "uplink0", "proto", "98")
	h.Run(t, "ip", "rule", "add", "from", "192.0.2.1", "lookup", "9800", "priority", "9800", "protocol", "98")
	left, err := h.Leftovers()
	if err != nil || len(left) != 5 {
		t.Errorf("left %q, %v, want five things", left, err)
	}
}

// TestNothingIsLeft looks at the machine after a host with everything in it.
func TestNothingIsLeft(t *testing.T) {
	before := machine(t)
	t.Run("host", func(t *testing.T) {
		h := NewHost(t)
		h.LAN(t)
		h.Netns(t, "c1")
	})
	if after := machine(t); after != before {
		t.Errorf("the machine has\n%s\nand had\n%s", after, before)
	}
}

// machine lists the mounts and links of the machine.
func machine(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	links, err := exec.Command("ls", "/sys/class/net", "/run").Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(mounts) + string(links)
}

func BenchmarkNewHost(b *testing.B) {
	for b.Loop() {
		h, err := start()
		if err != nil {
			b.Fatal(err)
		}
		h.stop()
	}
}

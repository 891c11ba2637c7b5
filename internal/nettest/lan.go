package nettest

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
)

// The addresses between a host and its LAN.
const (
	HostAddr4 = "192.0.2.1"
	HostAddr6 = "2001:db8::1"
	LANAddr4  = "192.0.2.2"
	LANAddr6  = "2001:db8::2"
)

// LAN makes a second host that stands for everything outside h, one cable
// away: uplink0 of h leads to its lan0. The default routes of h lead to it; it
// has no route to anything behind h.
func (h *Host) LAN(t testing.TB) *Host {
	t.Helper()
	lan := NewHost(t)
	if err := h.wire(lan); err != nil {
		t.Fatalf("wire the LAN: %v", err)
	}
	return lan
}

func (h *Host) wire(lan *Host) error {
	// The index is one that lan0 cannot have. A veth pair with one index on both
	// ends looks to linkwatch_urgent_event like no pair: its carrier is then
	// noticed up to a second late, and IPv6 neighbours are not heard until then
	// (seen on Linux 6.18).
	err := h.batch(fmt.Sprintf(`
link add uplink0 index 100 type veth peer name lan0 netns %d
addr add %s/24 dev uplink0
addr add %s/64 dev uplink0 nodad
link set uplink0 addrgenmode none up`, lan.Pid(), HostAddr4, HostAddr6))
	if err != nil {
		return err
	}
	err = lan.batch(fmt.Sprintf(`
addr add %s/24 dev lan0
addr add %s/64 dev lan0 nodad
link set lan0 addrgenmode none up`, LANAddr4, LANAddr6))
	if err != nil {
		return err
	}
	return h.batch(fmt.Sprintf("route add default via %s\n-6 route add default via %s", LANAddr4, LANAddr6))
}

// batch runs lines of ip(8).
func (h *Host) batch(lines string) error {
	for line := range strings.Lines(strings.TrimSpace(lines)) {
		if out, err := h.Try("ip", strings.Fields(line)...); err != nil {
			return fmt.Errorf("%w: %s", err, strings.TrimSpace(out))
		}
	}
	return nil
}

// Leftovers lists what the host still holds of Berth's: links, the table,
// routes and rules, and the host's named namespaces.
func (h *Host) Leftovers() ([]string, error) {
	var left []string
	err := h.Do(func() error {
		links, err := net.Interfaces()
		for _, l := range links {
			if strings.HasPrefix(l.Name, "bt") {
				left = append(left, "link "+l.Name)
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	pins, err := os.ReadDir(h.Path("/run/netns"))
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	for _, p := range pins {
		left = append(left, "namespace "+p.Name())
	}
	for _, ask := range []struct {
		what, command string
		ours          func(line string) bool
	}{
		{"", "nft list tables", func(s string) bool { return strings.HasSuffix(s, " berth") }},
		{"route ", "ip -4 route show table all proto 98", isLine},
		{"route ", "ip -6 route show table all proto 98", isLine},
		{"rule ", "ip -4 -N rule show", isOurRule},
		{"rule ", "ip -6 -N rule show", isOurRule},
	} {
		args := strings.Fields(ask.command)
		out, err := h.Try(args[0], args[1:]...)
		if err != nil {
			return nil, fmt.Errorf("%w: %s", err, out)
		}
		for line := range strings.Lines(out) {
			if line = strings.TrimSpace(line); ask.ours(line) {
				left = append(left, ask.what+line)
			}
		}
	}
	return left, nil
}

func isLine(s string) bool { return s != "" }

func isOurRule(s string) bool { return strings.HasSuffix(s, " proto 98") }

package berth

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// Each case is one that docker run -p takes in the same sense
// (docker/go-connections nat.ParsePortSpec).
func TestParsePortSpec(t *testing.T) {
	any4, any6, lo4, lo6 := netip.IPv4Unspecified(), netip.IPv6Unspecified(), netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()
	none := netip.Addr{}
	tests := []struct {
		in   string
		want []PortSpec
	}{
		{"80", []PortSpec{{TCP, none, 0, 0, 80}}},
		{"80/", []PortSpec{{TCP, none, 0, 0, 80}}},
		{":80", []PortSpec{{TCP, none, 0, 0, 80}}},
		{"::80", []PortSpec{{TCP, none, 0, 0, 80}}},
		{"0:80", []PortSpec{{TCP, none, 0, 0, 80}}},
		{"53/UDP", []PortSpec{{UDP, none, 0, 0, 53}}},
		{"8080:80", []PortSpec{{TCP, none, 8080, 8080, 80}}},
		{":8080:80", []PortSpec{{TCP, none, 8080, 8080, 80}}},
		{"65535:65535/sctp", []PortSpec{{SCTP, none, 65535, 65535, 65535}}},
		{"08080:080", []PortSpec{{TCP, none, 8080, 8080, 80}}},
		{"127.0.0.1:8080:80", []PortSpec{{TCP, lo4, 8080, 8080, 80}}},
		{"127.0.0.1::80", []PortSpec{{TCP, lo4, 0, 0, 80}}},
		{"[127.0.0.1]::80", []PortSpec{{TCP, lo4, 0, 0, 80}}},
		{"0.0.0.0:0:80", []PortSpec{{TCP, any4, 0, 0, 80}}},
		{"[::]::80", []PortSpec{{TCP, any6, 0, 0, 80}}},
		{"::::80", []PortSpec{{TCP, any6, 0, 0, 80}}},
		{"[::1]:8080:80/udp", []PortSpec{{UDP, lo6, 8080, 8080, 80}}},
		{"::1:8080:80", []PortSpec{{TCP, lo6, 8080, 8080, 80}}},
		{"::ffff:127.0.0.1:8080:80", []PortSpec{{TCP, lo4, 8080, 8080, 80}}},
		{"8000-8010:80", []PortSpec{{TCP, none, 8000, 8010, 80}}},
		{"8000-8000:80", []PortSpec{{TCP, none, 8000, 8000, 80}}},
		{"8000-8010:80-80", []PortSpec{{TCP, none, 8000, 8010, 80}}},
		{"8000-8002:80-82", []PortSpec{{TCP, none, 8000, 8000, 80}, {TCP, none, 8001, 8001, 81}, {TCP, none, 8002, 8002, 82}}},
		{"[::1]:8000-8001:80-81/udp", []PortSpec{{UDP, lo6, 8000, 8000, 80}, {UDP, lo6, 8001, 8001, 81}}},
		{"80-81", []PortSpec{{TCP, none, 0, 0, 80}, {TCP, none, 0, 0, 81}}},
		{"127.0.0.1::80-81", []PortSpec{{TCP, lo4, 0, 0, 80}, {TCP, lo4, 0, 0, 81}}},
	}
	for _, tt := range tests {
		got, err := ParsePortSpec(tt.in)
		if err != nil {
			t.Errorf("ParsePortSpec(%q): %v", tt.in, err)
			continue
		}
		if diff := cmp.Diff(tt.want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("ParsePortSpec(%q) (-want +got):\n%s", tt.in, diff)
		}
	}
}

func TestParsePortSpecErrors(t *testing.T) {
	for in, want := range map[string]string{
		"":                   `invalid port "": port of the sandbox is missing, as 80 in 8080:80`,
		"8080:":              `invalid port "8080:": port of the sandbox is missing, as 80 in 8080:80`,
		"/tcp":               `invalid port "/tcp": port of the sandbox is missing, as 80 in 8080:80`,
		"70000:80":           `invalid port "70000:80": port 70000 of the host: ports are 1 to 65535, as 8080:80`,
		"8080:70000":         `invalid port "8080:70000": port 70000 of the sandbox: ports are 1 to 65535, as 8080:80`,
		"8080:0":             `invalid port "8080:0": port 0 of the sandbox: ports are 1 to 65535, as 8080:80`,
		"0-1:80-81":          `invalid port "0-1:80-81": port 0 of the host: ports are 1 to 65535, as 8080:80`,
		"-1:80":              `invalid port "-1:80": port of the host is missing, as 80 in 8080:80`,
		"80-":                `invalid port "80-": port of the sandbox is missing, as 80 in 8080:80`,
		"1-2-3":              `invalid port "1-2-3": port "2-3" of the sandbox: not a number, as 80 in 8080:80`,
		"web:80":             `invalid port "web:80": port "web" of the host: not a number, as 80 in 8080:80`,
		" 80":                `invalid port " 80": port " 80" of the sandbox: not a number, as 80 in 8080:80`,
		"+80":                `invalid port "+80": port "+80" of the sandbox: not a number, as 80 in 8080:80`,
		"8080/udp:80":        `invalid port "8080/udp:80": port "8080/udp" of the host: not a number, as 80 in 8080:80`,
		"8080:80/icmp":       `invalid port "8080:80/icmp": protocol "icmp": it is tcp, udp or sctp, as 8080:80/udp`,
		"80/tcp/udp":         `invalid port "80/tcp/udp": protocol "tcp/udp": it is tcp, udp or sctp, as 8080:80/udp`,
		"8010-8000:80":       `invalid port "8010-8000:80": range 8010-8000: the lower port comes first, as 8000-8010`,
		"8000-8001:80-82":    `invalid port "8000-8001:80-82": a host range of 2 and a sandbox range of 3: they have one length, as 8000-8002:80-82`,
		"8000:80-82":         `invalid port "8000:80-82": a host range of 1 and a sandbox range of 3: they have one length, as 8000-8002:80-82`,
		"localhost:8080:80":  `invalid port "localhost:8080:80": host address "localhost": not an IP address, as 127.0.0.1:8080:80 or [::1]:8080:80`,
		"1.2.3:8080:80":      `invalid port "1.2.3:8080:80": host address "1.2.3": not an IP address, as 127.0.0.1:8080:80 or [::1]:8080:80`,
		":::80":              `invalid port ":::80": host address ":": not an IP address, as 127.0.0.1:8080:80 or [::1]:8080:80`,
		"[::1:80:80":         `invalid port "[::1:80:80": host address "[::1": not an IP address, as 127.0.0.1:8080:80 or [::1]:8080:80`,
		"[fe80::1%eth0]::80": `invalid port "[fe80::1%eth0]::80": host address "[fe80::1%eth0]": not an IP address, as 127.0.0.1:8080:80 or [::1]:8080:80`,
	} {
		_, err := ParsePortSpec(in)
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("ParsePortSpec(%q) = %v, want ErrInvalid", in, err)
			continue
		}
		if err.Error() != want {
			t.Errorf("ParsePortSpec(%q)\n got %s\nwant %s", in, err, want)
		}
	}
}

func FuzzParsePortSpec(f *testing.F) {
	for _, s := range []string{
		"80", "8080:80", "127.0.0.1::80", "[::]::80/udp", "::1:8080:80/SCTP", "8000-8010:80", "8000-8002:80-82", "1-65535",
		"1-65535:1-65535", "70000:80", "-:-", "[]::80", "::::::", "[fe80::1%eth0]:1:1", strings.Repeat("9", 300),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		specs, err := ParsePortSpec(s)
		if err != nil {
			if msg := err.Error(); !errors.Is(err, ErrInvalid) || strings.ContainsRune(msg, '\n') || len(msg) > 500 {
				t.Errorf("ParsePortSpec(%q): %d bytes of error: %v", s, len(msg), err)
			}
			return
		}
		if len(specs) == 0 || len(specs) > 65535 {
			t.Fatalf("ParsePortSpec(%q) gives %d ports", s, len(specs))
		}
		for _, p := range []PortSpec{specs[0], specs[len(specs)-1]} {
			again, err := ParsePortSpec(p.String())
			if err != nil || !slices.Equal(again, []PortSpec{p}) {
				t.Errorf("%q: %v is written %q and read %v, %v", s, p, p, again, err)
			}
		}
	})
}

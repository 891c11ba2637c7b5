package berth

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// A PortSpec asks for one port of a sandbox to be published.
type PortSpec struct {
	Protocol Protocol
	// HostIP is the address of the host to publish on; 0.0.0.0 and :: mean any
	// of the family. If it is not valid, any address of both families.
	HostIP netip.Addr
	// HostLow and HostHigh are equal for one port of the host. If HostLow is
	// lower, any free one of the range will do; if both are 0, any free port of
	// the kernel's ephemeral range.
	HostLow, HostHigh uint16
	// Port is the port of the sandbox.
	Port uint16
}

// String returns s as [ParsePortSpec] reads it.
func (s PortSpec) String() string {
	var b strings.Builder
	if s.HostIP.IsValid() {
		if s.HostIP.Is4() {
			b.WriteString(s.HostIP.String())
		} else {
			b.WriteString("[" + s.HostIP.String() + "]")
		}
		b.WriteByte(':')
	}
	if s.HostLow != 0 {
		b.WriteString(strconv.Itoa(int(s.HostLow)))
		if s.HostHigh != s.HostLow {
			b.WriteString("-" + strconv.Itoa(int(s.HostHigh)))
		}
	}
	if s.HostLow != 0 || s.HostIP.IsValid() {
		b.WriteByte(':')
	}
	if s.Port != 0 { // to unpublish, host ports may be all that is known
		b.WriteString(strconv.Itoa(int(s.Port)))
	}
	return b.String() + "/" + string(s.Protocol)
}

// ParsePortSpec reads what follows -p, in Docker's grammar:
//
//	[[IP:][HOST]:]SANDBOX[/PROTOCOL]
//
// HOST and SANDBOX are ports or ranges as 8000-8010. Ranges of one length are
// published one to one; a range of the host and one port of the sandbox is one
// PortSpec, for which any free port of the range will do. Without HOST, or with
// 0, any free port will do. An IPv6 address may stand in brackets. PROTOCOL is
// tcp, udp or sctp in any case, and tcp if left out.
//
// Errors match [ErrInvalid].
func ParsePortSpec(s string) ([]PortSpec, error) {
	ip, host, inside := splitPortSpec(s)
	inside, proto, _ := strings.Cut(inside, "/")
	var base PortSpec
	var err error
	if base.Protocol, err = parseProtocol(proto); err != nil {
		return nil, badPort(s, err)
	}
	if base.HostIP, err = parseHostIP(ip); err != nil {
		return nil, badPort(s, err)
	}
	low, high, err := parsePorts("sandbox", inside)
	if err != nil {
		return nil, badPort(s, err)
	}
	if host != "" && strings.Trim(host, "0") != "" {
		if base.HostLow, base.HostHigh, err = parsePorts("host", host); err != nil {
			return nil, badPort(s, err)
		}
	}
	if low == high {
		base.Port = low
		return []PortSpec{base}, nil
	}
	if n, m := base.HostHigh-base.HostLow, high-low; base.HostLow != 0 && n != m {
		return nil, badPort(s, fmt.Errorf("a host range of %d and a sandbox range of %d: they have one length, as 8000-8002:80-82",
			int(n)+1, int(m)+1))
	}
	all := make([]PortSpec, 0, int(high-low)+1)
	for i := range int(high-low) + 1 {
		one := base
		one.Port = low + uint16(i)
		if base.HostLow != 0 {
			one.HostLow += uint16(i)
			one.HostHigh = one.HostLow
		}
		all = append(all, one)
	}
	return all, nil
}

func badPort(s string, why error) error {
	return fmt.Errorf("%w port %s: %w", ErrInvalid, cutQuote(s), why)
}

// splitPortSpec splits at the last two colons: an IPv6 address keeps its own.
func splitPortSpec(s string) (ip, host, inside string) {
	rest, inside := cutLast(s)
	ip, host = cutLast(rest)
	return ip, host, inside
}

func cutLast(s string) (before, after string) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return "", s
	}
	return s[:i], s[i+1:]
}

func parseProtocol(s string) (Protocol, error) {
	switch p := Protocol(strings.ToLower(s)); p {
	case "":
		return TCP, nil
	case TCP, UDP, SCTP:
		return p, nil
	}
	return "", fmt.Errorf("protocol %s: it is tcp, udp or sctp, as 8080:80/udp", cutQuote(s))
}

func parseHostIP(s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	bare := s
	if len(s) > 1 && s[0] == '[' && s[len(s)-1] == ']' {
		bare = s[1 : len(s)-1]
	}
	a, err := netip.ParseAddr(bare)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("host address %s: not an IP address, as 127.0.0.1:8080:80 or [::1]:8080:80", cutQuote(s))
	}
	return a.Unmap(), nil
}

// parsePorts reads a port or a range of the host or the sandbox.
func parsePorts(whose, s string) (low, high uint16, err error) {
	first, last, isRange := strings.Cut(s, "-")
	if low, err = parsePort(whose, first); err != nil {
		return 0, 0, err
	}
	if !isRange {
		return low, low, nil
	}
	if high, err = parsePort(whose, last); err != nil {
		return 0, 0, err
	}
	if low > high {
		return 0, 0, fmt.Errorf("range %s: the lower port comes first, as %d-%d", s, high, low)
	}
	return low, high, nil
}

func parsePort(whose, s string) (uint16, error) {
	switch {
	case s == "":
		return 0, fmt.Errorf("port of the %s is missing, as 80 in 8080:80", whose)
	case strings.Trim(s, "0123456789") != "":
		return 0, fmt.Errorf("port %s of the %s: not a number, as 80 in 8080:80", cutQuote(s), whose)
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("port %s of the %s: ports are 1 to 65535, as 8080:80", cut(s), whose)
	}
	return uint16(n), nil
}

// cut shortens digits for an error.
func cut(s string) string {
	if len(s) > 20 {
		return s[:20] + "…"
	}
	return s
}

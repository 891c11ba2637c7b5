package nettest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

// A Place is a network namespace to make traffic in: a *[Host] or a
// *netns.NS.
type Place interface {
	Do(fn func() error) error
}

// Serve answers everything that comes to addr in place with text, a space and
// the address that asked, until the test ends. Proto is tcp, udp or sctp; port
// 0 takes a free one (not for sctp). It returns the address it listens at.
func Serve(t testing.TB, place Place, proto string, addr netip.AddrPort, text string) netip.AddrPort {
	t.Helper()
	s, at, err := serve(place, proto, addr, text)
	if err != nil {
		t.Fatalf("serve %s %s: %v", proto, addr, err)
	}
	t.Cleanup(func() { s.Close() })
	return at
}

// Dial asks at addr from place and returns the answer: the text of [Serve] and
// the address the other side saw. An error says that no answer came.
func Dial(t testing.TB, place Place, proto string, addr netip.AddrPort, timeout time.Duration) (string, error) {
	t.Helper()
	return dial(place, proto, addr, timeout)
}

// serve opens the socket inside place; a socket stays in the namespace it was
// made in, so the rest runs anywhere.
func serve(place Place, proto string, addr netip.AddrPort, text string) (s io.Closer, at netip.AddrPort, err error) {
	err = place.Do(func() error {
		switch proto {
		case "tcp":
			lc := net.ListenConfig{}
			lc.SetMultipathTCP(false)
			l, err := lc.Listen(context.Background(), "tcp"+family(addr.Addr()), addr.String())
			if err != nil {
				return err
			}
			s, at = l, l.Addr().(*net.TCPAddr).AddrPort()
			go acceptAll(l, text)
		case "udp":
			c, err := net.ListenUDP("udp"+family(addr.Addr()), net.UDPAddrFromAddrPort(addr))
			if err != nil {
				return err
			}
			s, at = c, c.LocalAddr().(*net.UDPAddr).AddrPort()
			go answerAll(c, text)
		case "sctp":
			c, err := listenSCTP(addr.Addr())
			if err != nil {
				return err
			}
			s, at = c, addr
			go answerSCTP(c, addr.Port(), text)
		default:
			return fmt.Errorf("protocol %q", proto)
		}
		return nil
	})
	return s, at, err
}

func acceptAll(l net.Listener, text string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return // closed
		}
		go func() {
			defer c.Close()
			fmt.Fprint(c, reply(text, c.RemoteAddr()))
		}()
	}
}

func answerAll(c net.PacketConn, text string) {
	buf := make([]byte, 64<<10)
	for {
		_, from, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			c.WriteTo([]byte(reply(text, from)), from) // best effort: it is a datagram
		}
	}
}

func reply(text string, from net.Addr) string {
	host, _, err := net.SplitHostPort(from.String())
	if err != nil {
		host = from.String() // a raw socket knows no ports
	}
	return text + " " + host
}

func dial(place Place, proto string, addr netip.AddrPort, timeout time.Duration) (answer string, err error) {
	if proto == "sctp" {
		return dialSCTP(place, addr, timeout)
	}
	var c net.Conn
	deadline := time.Now().Add(timeout)
	err = place.Do(func() error {
		d := net.Dialer{Deadline: deadline}
		d.SetMultipathTCP(false)
		c, err = d.Dial(proto+family(addr.Addr()), addr.String())
		return err
	})
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(deadline); err != nil {
		return "", err
	}
	if proto == "tcp" {
		b, err := io.ReadAll(c)
		return string(b), err
	}
	if _, err := c.Write([]byte("?")); err != nil {
		return "", err
	}
	buf := make([]byte, 64<<10)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

// Ping sends one echo request from place to addr and waits for its answer.
func Ping(t testing.TB, place Place, addr netip.Addr, timeout time.Duration) error {
	t.Helper()
	return ping(place, addr, timeout)
}

func ping(place Place, addr netip.Addr, timeout time.Duration) error {
	// RFC 792, RFC 4443: type, code, checksum, identifier, sequence.
	network, request, answer := "ip4:icmp", byte(8), byte(0)
	if addr.Is6() {
		network, request, answer = "ip6:ipv6-icmp", 128, 129
	}
	var c net.PacketConn
	err := place.Do(func() (err error) {
		c, err = net.ListenPacket(network, "")
		return err
	})
	if err != nil {
		return err
	}
	defer c.Close()
	id := uint16(os.Getpid())
	m := []byte{request, 0, 0, 0, byte(id >> 8), byte(id), 0, 1}
	if addr.Is4() { // for ICMPv6 the kernel does it
		sum := checksum(m)
		m[2], m[3] = byte(sum>>8), byte(sum)
	}
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := c.WriteTo(m, &net.IPAddr{IP: addr.AsSlice(), Zone: addr.Zone()}); err != nil {
		return err
	}
	buf := make([]byte, 1500)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return fmt.Errorf("ping %s: %w", addr, err)
		}
		if n >= 8 && buf[0] == answer && buf[4] == m[4] && buf[5] == m[5] && from.String() == addr.String() {
			return nil
		}
	}
}

// checksum is that of RFC 1071 over an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "4"
	}
	return "6"
}

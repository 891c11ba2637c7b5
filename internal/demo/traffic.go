package demo

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/netns"
)

// A try sends something and waits for its answer; nil says that it came.
type try func(patience time.Duration) error

// How long an answer may take. Nothing is far away here: what is to come comes
// in a millisecond, unless the machine is busy.
const (
	enough = 10 * time.Second
	brief  = 700 * time.Millisecond
)

var errSilent = errors.New("no answer")

// reason gives the errors of a socket the names people know.
func reason(err error) error {
	var errno unix.Errno
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errSilent
	case errors.As(err, &errno):
		return errno
	}
	return err
}

func unreached(err error) bool {
	return errors.Is(err, errSilent) || errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH)
}

func isRefusal(err error) bool { return errors.Is(err, unix.ECONNREFUSED) }

// in does fn inside a place: the private host, or a namespace of it by name.
func in(place string, fn func() error) error {
	if place == "" {
		return fn()
	}
	ns, err := netns.Open(netns.Path(place))
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(fn)
}

// echoes numbers the pings, so that none takes the answer of another.
var echoes atomic.Uint32

// ping sends an ICMP echo (RFC 792).
func ping(from, to string) try {
	return func(patience time.Duration) error {
		var c *net.IPConn
		err := in(from, func() (err error) {
			c, err = net.DialIP("ip4:icmp", nil, &net.IPAddr{IP: net.ParseIP(to)})
			return err
		})
		if err != nil {
			return reason(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		echo := []byte{8, 0, 0, 0, 0, 0, 0, 0}
		binary.BigEndian.PutUint32(echo[4:], echoes.Add(1))
		binary.BigEndian.PutUint16(echo[2:], checksum(echo))
		if _, err := c.Write(echo); err != nil {
			return reason(err)
		}
		for b := make([]byte, 256); ; {
			// ReadFrom and not Read: it leaves the IP header out.
			n, _, err := c.ReadFrom(b)
			if err != nil {
				return reason(err)
			}
			if n >= 8 && b[0] == 0 && string(b[4:8]) == string(echo[4:]) {
				return nil
			}
		}
	}
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func listen(place, addr string) (l net.Listener, err error) {
	err = in(place, func() error {
		var c net.ListenConfig
		c.SetMultipathTCP(false) // not every kernel has it
		l, err = c.Listen(context.Background(), "tcp4", addr)
		return err
	})
	return l, err
}

func dial(from, addr string, patience time.Duration) (c net.Conn, err error) {
	end := time.Now().Add(patience)
	err = in(from, func() error {
		d := net.Dialer{Deadline: end}
		c, err = d.Dial("tcp4", addr)
		return err
	})
	var timeout interface{ Timeout() bool }
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return nil, errSilent
	case err != nil:
		return nil, reason(err)
	}
	return c, c.SetDeadline(end)
}

// echo accepts connections in a place, as "nc -l" does, and gives back what it
// hears.
func echo(place, addr string) (io.Closer, error) {
	l, err := listen(place, addr)
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return l, nil
}

// talk connects and hears what it says come back: both directions.
func talk(from, addr string) try {
	return func(patience time.Duration) error {
		c, err := dial(from, addr, patience)
		if err != nil {
			return err
		}
		defer c.Close()
		const hello = "hello\n"
		if _, err := io.WriteString(c, hello); err != nil {
			return reason(err)
		}
		b := make([]byte, len(hello))
		if _, err := io.ReadFull(c, b); err != nil {
			return reason(err)
		}
		if string(b) != hello {
			return fmt.Errorf("heard %q", b)
		}
		return nil
	}
}

// A webServer serves one page.
type webServer struct {
	net.Listener
	// served counts the pages since the start.
	served atomic.Int32
}

const page = "<h1>Welcome to a web server without Docker!</h1>\n"

// web serves the page in a place until it is closed.
func web(place, addr string) (*webServer, error) {
	l, err := listen(place, addr)
	if err != nil {
		return nil, err
	}
	s := &webServer{Listener: l}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // it was closed
			}
			go s.answer(c)
		}
	}()
	return s, nil
}

// answer reads a request's head and sends the page. Package net/http would do
// it, and make every start of berth longer.
func (s *webServer) answer(c net.Conn) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(enough))
	for r := bufio.NewReader(c); ; {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		if strings.TrimSpace(line) == "" {
			break
		}
	}
	s.served.Add(1)
	client, _, _ := net.SplitHostPort(c.RemoteAddr().String())
	fmt.Fprintf(c, "HTTP/1.0 200 OK\r\n%s: %s\r\nContent-Length: %d\r\n\r\n%s", clientHeader, client, len(page), page)
}

// clientHeader says in a page's head who has asked for it.
const clientHeader = "X-Client"

// curl fetches the page.
func curl(from, addr string) try {
	return func(patience time.Duration) error {
		_, err := fetch(from, addr, patience)
		return err
	}
}

// fetch fetches the page and returns who the server says has asked for it.
func fetch(from, addr string, patience time.Duration) (client string, err error) {
	c, err := dial(from, addr, patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.0\r\nHost: %s\r\n\r\n", addr); err != nil {
		return "", reason(err)
	}
	b, err := io.ReadAll(c)
	if err != nil {
		return "", reason(err)
	}
	head, body, _ := strings.Cut(string(b), "\r\n\r\n")
	if body != page {
		return "", fmt.Errorf("another page: %.80q", b)
	}
	for line := range strings.Lines(head) {
		if v, ok := strings.CutPrefix(line, clientHeader+": "); ok {
			client = strings.TrimSpace(v)
		}
	}
	return client, nil
}

// serve serves the page until it is told to end: what a container does where
// there is no nginx.
func serve(ctx context.Context, addr string) error {
	s, err := web("", addr)
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	<-ctx.Done()
	return s.Close()
}

// because is an error as the end of a line.
func because(err error) string {
	if err == nil {
		return ""
	}
	return " (" + err.Error() + ")"
}

package engine_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"berth"
	"berth/engine"
	"berth/internal/nettest"
)

// stream sends bytes by TCP and returns how fast they came, in bits each
// second on the wire. The first fifth, which a burst lets pass, is not counted.
func stream(t *testing.T, from, to nettest.Place, addr netip.AddrPort, bytes int) float64 {
	t.Helper()
	var l net.Listener
	err := to.Do(func() (err error) {
		l, err = net.Listen("tcp", addr.String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var c net.Conn
	err = from.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", addr.String(), 10*time.Second)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, bytes))
		sent <- errors.Join(err, c.Close())
	}()
	in, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := in.SetDeadline(time.Now().Add(60 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, in, int64(bytes/5)); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	n, err := io.Copy(io.Discard, in)
	took := time.Since(begin)
	if err := errors.Join(err, <-sent); err != nil {
		t.Fatal(err)
	}
	// Of a frame of 1514 bytes 1448 are the stream's.
	return float64(n) * 8 / took.Seconds() * 1514 / 1448
}

// near fails unless a rate is within a tenth of what it should be. It is
// measured up to three times: a machine that is busy stops the clock of a short
// stream at the wrong moment, and a limit that is wrong is wrong each time.
func near(t *testing.T, what string, measure func() float64, want float64) {
	t.Helper()
	var got float64
	for range 3 {
		got = measure()
		t.Logf("%s: %.2f Mbit/s, the limit is %.2f (%+.1f %%)", what, got/1e6, want/1e6, 100*(got/want-1))
		if got >= 0.9*want && got <= 1.1*want {
			return
		}
	}
	t.Errorf("%s: %.2f Mbit/s, want %.2f within a tenth", what, got/1e6, want/1e6)
}

// TestRatesHold: what goes in and out is as fast as it was asked to be, on a
// bridge and on a link, also after a change and after somebody took a limit
// away; nothing is left.
func TestRatesHold(t *testing.T) {
	for _, driver := range []berth.Driver{berth.Bridge, berth.Link} {
		t.Run(string(driver), func(t *testing.T) {
			w := newWorld(t)
			n := w.network(engine.NetworkSpec{Name: "front", Driver: driver})
			web, ns := w.netns()
			ep := w.connect("front", web, engine.ConnectOptions{Rates: berth.Rates{In: berth.Rate{Bits: 20e6}, Out: berth.Rate{Bits: 10e6, Burst: 256 << 13}}})
			w.clean()
			gw := n.Subnets[0].Gateway
			inside, outside := netip.AddrPortFrom(ep.Addr4(), 80), netip.AddrPortFrom(gw, 80)
			near(t, "in", func() float64 { return stream(t, w.host, ns, inside, 5e6) }, 20e6)
			near(t, "out", func() float64 { return stream(t, ns, w.host, outside, 3e6) }, 10e6)

			update := func(c berth.RateChange) berth.Endpoint {
				t.Helper()
				ep, err := w.UpdateEndpoint(t.Context(), "front", web, engine.UpdateOptions{Rates: c})
				if err != nil {
					t.Fatal(err)
				}
				w.clean()
				return ep
			}
			faster, none := uint64(40e6), uint64(0)
			ep = update(berth.RateChange{Out: &faster})
			if want := (berth.Rates{In: berth.Rate{Bits: 20e6}, Out: berth.Rate{Bits: 40e6, Burst: 256 << 13}}); ep.Rates != want {
				t.Errorf("rates %+v, want %+v", ep.Rates, want)
			}
			near(t, "out, changed", func() float64 { return stream(t, ns, w.host, outside, 10e6) }, 40e6)

			// Whatever is taken away is missed, and comes back.
			end := "bt" + ep.ID[:8]
			for _, spoil := range []string{
				"tc qdisc del dev " + end + " root", "tc qdisc del dev " + end + " ingress", "tc filter del dev " + end + " ingress",
				"ip link del " + end + "-out", "ip link set " + end + "-out down",
				"tc qdisc replace dev " + end + "-out root handle 6274: tbf rate 1gbit burst 64kb limit 1mb",
				"tc qdisc replace dev " + end + " root handle 1: pfifo",
			} {
				args := strings.Fields(spoil)
				w.host.Run(t, args[0], args[1:]...)
				r, err := w.Check(t.Context())
				if err != nil || r.Clean() || len(r.Dead) > 0 {
					t.Errorf("%s: check says %+v, %v", spoil, r, err)
				}
				if _, err := w.Reconcile(t.Context()); err != nil {
					t.Errorf("%s: %v", spoil, err)
				}
				w.clean()
			}
			near(t, "out, mended", func() float64 { return stream(t, ns, w.host, outside, 10e6) }, 40e6)
			near(t, "in, mended", func() float64 { return stream(t, w.host, ns, inside, 5e6) }, 20e6)

			update(berth.RateChange{In: &none})
			if got := stream(t, w.host, ns, inside, 50e6); got < 100e6 {
				t.Errorf("without a limit %.0f Mbit/s come in", got/1e6)
			}
			ep = update(berth.RateChange{Out: &none})
			if ep.Rates != (berth.Rates{}) {
				t.Errorf("rates %+v are left", ep.Rates)
			}
			if got := w.host.Run(t, "tc", "qdisc", "show"); strings.Contains(got, "tbf") || strings.Contains(got, "ingress") {
				t.Errorf("left %s", got)
			}
			update(berth.RateChange{In: &faster, Out: &faster})
			if err := w.Disconnect(t.Context(), "front", []string{web}, engine.DisconnectOptions{}); err != nil {
				t.Fatal(err)
			}
			w.clean()
			if err := w.RemoveNetwork(t.Context(), "front", engine.RemoveOptions{}); err != nil {
				t.Fatal(err)
			}
			if left, err := w.host.Leftovers(); err != nil || len(left) > 0 {
				t.Errorf("left %q, %v", left, err)
			}
		})
	}
}

// TestRatesAreRefused: a limit that cannot hold is refused before anything is
// done.
func TestRatesAreRefused(t *testing.T) {
	w := newWorld(t)
	w.network(engine.NetworkSpec{Name: "front"})
	w.network(engine.NetworkSpec{Name: "pair", Driver: berth.Link, Options: map[string]string{"host": "false"}})
	web, _ := w.netns()
	some := berth.Rates{Out: berth.Rate{Bits: 1e6}}
	for _, tt := range []struct {
		network string
		rates   berth.Rates
	}{{"front", berth.Rates{In: berth.Rate{Bits: 999}}}, {"pair", some}} {
		if _, err := w.Connect(t.Context(), tt.network, web, engine.ConnectOptions{Rates: tt.rates}); !errors.Is(err, berth.ErrInvalid) {
			t.Errorf("%+v: %v", tt, err)
		}
	}
	bits := uint64(1e6)
	o := engine.UpdateOptions{Rates: berth.RateChange{Out: &bits}}
	if _, err := w.UpdateEndpoint(t.Context(), "front", web, o); !errors.Is(err, berth.ErrNotFound) {
		t.Errorf("not connected: %v", err)
	}
	w.connect("front", web, engine.ConnectOptions{})
	w.connect("front", web, engine.ConnectOptions{Interface: "eth1"})
	if _, err := w.UpdateEndpoint(t.Context(), "front", web, o); !errors.Is(err, berth.ErrInvalid) {
		t.Errorf("two endpoints: %v", err)
	}
	o.Interface = "eth1"
	if ep, err := w.UpdateEndpoint(t.Context(), "front", web, o); err != nil || ep.Interface != "eth1" || ep.Rates != some {
		t.Errorf("%+v, %v", ep, err)
	}
	w.clean()
	w.connect("pair", web, engine.ConnectOptions{})
	if _, err := w.UpdateEndpoint(t.Context(), "pair", web, o); !errors.Is(err, berth.ErrNotFound) {
		t.Errorf("eth1 on pair: %v", err)
	}
	if _, err := w.UpdateEndpoint(t.Context(), "pair", web, engine.UpdateOptions{Rates: o.Rates}); !errors.Is(err, berth.ErrInvalid) {
		t.Errorf("pair: %v", err)
	}
}

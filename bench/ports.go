package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth/internal/netns"
)

const tenThousand = "20000-29999:20000-29999"

// manyPorts measures publishing as ports grow. Nothing is unpublished in
// between: the kernel frees in the background, and what comes next waits for
// it.
func manyPorts() []row {
	few, many := newBed(), newBed()
	sb := [2]*netns.NS{fresh(), fresh()}
	few.connect(sb[0])
	many.connect(sb[1])
	many.publish(sb[1], tenThousand)
	var first, later sample
	for i := range rounds(30) {
		spec := fmt.Sprintf("%d:80", 1000+i)
		turn(i, func() { first.timed(func() { few.publish(sb[0], spec) }) },
			func() { later.timed(func() { many.publish(sb[1], spec) }) })
	}
	rows := []row{{what: "the 10,001st publish and the next / the first and the next", ours: later, reference: first, unit: " ms", want: atMost(1.5)}}

	var one, all sample
	for i := range rounds(8) {
		b := newBed()
		sb := fresh()
		b.connect(sb)
		turn(i, func() { one.timed(func() { b.publish(sb, "9:80") }) },
			func() { all.timed(func() { b.publish(sb, tenThousand) }) })
		check(b.Close())
	}
	return append(rows, row{what: "10,000 ports in one publish / one port", ours: all, reference: one, unit: " ms", want: atMost(100)})
}

// connections measures taking a UDP port back as connections are in the table.
func connections() []row {
	n := 100_000
	if *quick {
		n = 10_000
	}
	b, idle := newBed(), newBed()
	outside := lan(b.host)
	web, still := fresh(), fresh()
	b.connect(web)
	idle.connect(still)
	for _, spec := range []string{"53:53/udp", "54:54/udp"} {
		b.publish(web, spec)
		idle.publish(still, spec)
	}
	// What is sent is taken and not answered.
	check(web.Do(func() error {
		_, err := net.ListenPacket("udp", ":53")
		return err
	}))
	var others, its [2]sample
	for i := range rounds(8) {
		flood(outside, n)
		had(b.host, n)
		turn(i, func() { others[0].timed(func() { b.unpublish(web, "54:54/udp") }) },
			func() { others[1].timed(func() { idle.unpublish(still, "54:54/udp") }) })
		b.publish(web, "54:54/udp")
		idle.publish(still, "54:54/udp")
		turn(i, func() { its[0].timed(func() { b.unpublish(web, "53:53/udp") }) },
			func() { its[1].timed(func() { idle.unpublish(still, "53:53/udp") }) })
		b.publish(web, "53:53/udp")
		idle.publish(still, "53:53/udp")
	}
	return []row{
		{what: fmt.Sprintf("unpublish of a UDP port, %d connections of another port in the table / none", n), ours: others[0], reference: others[1], unit: " ms"},
		{what: fmt.Sprintf("unpublish of a UDP port with %d connections of its own / with none", n), ours: its[0], reference: its[1], unit: " ms"},
	}
}

// flood sends n datagrams to the host's port 53, each from a source of its own.
func flood(outside *netns.NS, n int) {
	var fd int
	check(outside.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	}))
	defer unix.Close(fd)
	to := netip.AddrFrom4([4]byte{192, 0, 2, 1})
	p := make([]byte, 29)
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	copy(p[16:], to.AsSlice())
	binary.BigEndian.PutUint16(p[22:], 53)
	binary.BigEndian.PutUint16(p[24:], 9) // without a checksum
	for i := range n {
		copy(p[12:], []byte{192, 0, 2, byte(2 + i/60_000)})
		binary.BigEndian.PutUint16(p[20:], uint16(1024+i%60_000))
		check(unix.Sendto(fd, p, 0, &unix.SockaddrInet4{Addr: to.As4()}))
	}
}

// had makes sure that a host's table has what is claimed.
func had(host *netns.NS, n int) {
	var h *netlink.Handle
	check(host.Do(func() (err error) { h, err = netlink.NewHandle(unix.NETLINK_NETFILTER); return err }))
	defer h.Close()
	flows := must(h.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET))
	if len(flows) < n*99/100 {
		check(fmt.Errorf("the table has %d connections of %d", len(flows), n))
	}
}

package main

import (
	"fmt"

	"berth/engine"
	"berth/internal/netns"
)

// A step is what was measured from a number of endpoints on.
type step struct {
	from           int
	attach, detach [2]sample // ours, the floor's
	connect        sample    // ours, without the port
}

// attach compares connecting with the floor, and disconnecting with the
// kernel's deletion, as the endpoints of a network grow, and with them the
// namespaces of the machine.
func attach() []row {
	marks := []int{1, 100, 900}
	if *quick {
		marks = []int{1, 20, 100}
	}
	b, f := newBed(), newFloor(fresh())
	crowd := fresh() // the far ends of the floor's other endpoints
	var steps []*step
	full := 0
	for _, m := range marks {
		for ; full < m-1; full++ {
			b.connect(fresh())
			f.fill(full, crowd)
		}
		for range 10 {
			settle()
		}
		s := &step{from: m}
		s.measure(b, f)
		steps = append(steps, s)
	}
	return append(table(steps), bulk()...)
}

func (s *step) measure(b *bed, f *floor) {
	var mine []*netns.NS
	for i := range rounds(24) {
		sbs := several(2)
		settle()
		k := s.from - 1 + i
		turn(i, func() {
			s.attach[0].timed(func() {
				s.connect.timed(func() { b.connect(sbs[0]) })
				b.publish(sbs[0], fmt.Sprintf("%d:80", 10000+k))
			})
		}, func() { s.attach[1].timed(func() { f.attach(k, sbs[1], 0) }) })
		mine = append(mine, sbs[0])
	}
	for i, sb := range mine {
		settle()
		turn(i, func() { s.detach[0].timed(func() { b.disconnect(sb) }) },
			func() { s.detach[1].timed(func() { f.detach(s.from - 1 + i) }) })
	}
}

func table(steps []*step) (rows []row) {
	for _, s := range steps {
		rows = append(rows, row{what: fmt.Sprintf("connect + publish, from endpoint %d on / bare netlink", s.from),
			ours: s.attach[0], reference: s.attach[1], unit: " ms", want: atMost(2)})
	}
	first, last := steps[0], steps[len(steps)-1]
	rows = append(rows,
		row{what: fmt.Sprintf("connect + publish, from endpoint %d on / from endpoint %d on, earlier in the run", last.from, first.from),
			ours: last.attach[0], reference: first.attach[0], unit: " ms", want: atMost(1.5)},
		row{what: fmt.Sprintf("the same of bare netlink, from endpoint %d on / from endpoint %d on", last.from, first.from),
			ours: last.attach[1], reference: first.attach[1], unit: " ms"},
		row{what: fmt.Sprintf("connect alone, from endpoint %d on / bare netlink with its map elements", first.from),
			ours: first.connect, reference: first.attach[1], unit: " ms"})
	for _, s := range steps {
		rows = append(rows, row{what: fmt.Sprintf("disconnect, from endpoint %d on / the kernel's deletion of one veth", s.from),
			ours: s.detach[0], reference: s.detach[1], unit: " ms", want: atMost(1.2)})
	}
	return rows
}

// bulk disconnects a hundred endpoints together.
func bulk() []row {
	const many = 100
	b, f := newBed(), newFloor(fresh())
	mine, theirs := several(many), several(many)
	var leave, remove, group sample
	for i := range rounds(8) {
		for _, how := range []*sample{&leave, &remove} {
			for _, sb := range mine {
				b.connect(sb)
			}
			settle()
			how.shared(many, func() {
				if how == &leave {
					b.disconnect(mine...)
				} else {
					check(b.RemoveNetwork(ctx, "front", engine.RemoveOptions{Force: true}))
				}
			})
		}
		b.create()
		for j, sb := range theirs {
			f.attach(i*many+j, sb, 7)
		}
		settle()
		group.shared(many, func() { f.detachGroup(7) })
	}
	return []row{
		{what: "disconnect of 100 together, each / the kernel's deletion of a group of 100, each", ours: leave, reference: group, unit: " ms", want: itselfMost(2)},
		{what: "network rm --force with 100 endpoints, each / the same", ours: remove, reference: group, unit: " ms", want: itselfMost(2)},
	}
}

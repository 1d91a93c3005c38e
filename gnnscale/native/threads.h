// A few threads that wait for work, made when they are first needed; several callers may share them.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <pthread.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace gnnscale {

class Threads {
   public:
    using Work = std::function<void(int64_t)>;

    // Calls work(0) to work(count - 1), each once, and returns when all are done; the caller takes the first.
    void run(int64_t count, const Work& work) {
        if (count <= 1) return work(0);
        Job job{&work, count - 1};
        std::unique_lock<std::mutex> hold(mutex);
        for (; made < count - 1; made++) std::thread([this] { serve(); }).detach();
        for (int64_t k = 1; k < count; k++) todo.push_back({&job, k});
        hold.unlock();
        wake.notify_all();
        work(0);
        hold.lock();
        while (job.left > 0) wait(done, hold);
    }

    static Threads& of_this_process() {  // those of a parent are not there after a fork
        static std::atomic<Threads*> current{nullptr};
        Threads* threads = current;
        if (threads && threads->owner == getpid()) return *threads;
        Threads* fresh = new Threads;
        if (current.compare_exchange_strong(threads, fresh)) return *fresh;
        delete fresh;  // another thread was first
        return *threads;
    }

   private:
    struct Job {
        const Work* work;
        int64_t left;
    };
    struct Part {
        Job* job;
        int64_t number;
    };

    const pid_t owner = getpid();
    std::mutex mutex;
    std::condition_variable wake, done;
    std::vector<Part> todo;
    int64_t made = 0;

    // condition_variable::wait of a recent compiler is not in the libstdc++ of many a system.
    static void wait(std::condition_variable& condition, std::unique_lock<std::mutex>& hold) {
        pthread_cond_wait(condition.native_handle(), hold.mutex()->native_handle());
    }

    void serve() {
        std::unique_lock<std::mutex> hold(mutex);
        while (true) {
            while (todo.empty()) wait(wake, hold);
            const Part part = todo.back();
            todo.pop_back();
            hold.unlock();
            (*part.job->work)(part.number);
            hold.lock();
            if (--part.job->left == 0) done.notify_all();
        }
    }
};

}  // namespace gnnscale

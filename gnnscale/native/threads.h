// A few threads that wait for work, made when they are first needed.
#pragma once

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
    // Calls work(0) to work(count - 1), each once, and returns when all are done; the caller takes the first.
    void run(int64_t count, const std::function<void(int64_t)>& work) {
        if (count > 1) grow(count - 1);
        {
            std::lock_guard<std::mutex> hold(mutex);
            job = &work;
            for (int64_t k = 1; k < count; k++) todo.push_back(k);
            left = count - 1;
        }
        if (count > 1) wake.notify_all();
        work(0);
        std::unique_lock<std::mutex> hold(mutex);
        while (left > 0) wait(done, hold);
    }

    static Threads& of_this_process() {  // those of a parent are not there after a fork
        static Threads* threads = nullptr;
        static pid_t owner = 0;
        if (owner != getpid()) {
            threads = new Threads;
            owner = getpid();
        }
        return *threads;
    }

   private:
    std::mutex mutex;
    std::condition_variable wake, done;
    std::vector<int64_t> todo;
    const std::function<void(int64_t)>* job = nullptr;
    int64_t left = 0, made = 0;

    // condition_variable::wait of a recent compiler is not in the libstdc++ of many a system.
    static void wait(std::condition_variable& condition, std::unique_lock<std::mutex>& hold) {
        pthread_cond_wait(condition.native_handle(), hold.mutex()->native_handle());
    }

    void grow(int64_t count) {
        for (; made < count; made++) std::thread([this] { serve(); }).detach();
    }

    void serve() {
        std::unique_lock<std::mutex> hold(mutex);
        while (true) {
            while (todo.empty()) wait(wake, hold);
            const int64_t k = todo.back();
            todo.pop_back();
            const auto* work = job;
            hold.unlock();
            (*work)(k);
            hold.lock();
            if (--left == 0) done.notify_one();
        }
    }
};

}  // namespace gnnscale
